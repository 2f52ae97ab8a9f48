/** What a dashboard is given, and how long it lives. */

export type Listener = (...args: never[]) => void;

/** The part of an anywidget model that every host gives. */
export interface AnyModel {
  get(key: string): unknown;
  set(key: string, value: unknown): void;
  save_changes(): void;
  send(content: unknown, callbacks?: unknown, buffers?: ArrayBuffer[]): void;
  on(event: string, listener: Listener): void;
  off(event?: string | null, listener?: Listener | null): void;
  /** JupyterLab's: it knows whether its kernel is busy. */
  widget_manager?: { kernel?: { status?: string } | null } | undefined;
}

export interface RenderArgs {
  model: AnyModel;
  el: HTMLElement;
  /** Missing before anywidget 0.11. */
  signal?: AbortSignal | undefined;
  /** Missing before anywidget 0.11. `kernel: false` is our report page saying that nobody will ever answer. */
  host?: { kernel?: boolean } | undefined;
}

export type Disposer = () => void;

/** A view's own life: everything it installs is registered here and removed together. */
export interface Life {
  readonly signal: AbortSignal;
  /** False where the host says at once that there is no kernel. */
  readonly kernelPossible: boolean;
  /** Set where not every latent can be shown: which of those that a linked dashboard chooses are. */
  accepts?: (latent: number) => boolean;
  /** Show an error above the dashboard, which goes on. */
  fail?(error: unknown): void;
  add(dispose: Disposer): void;
}
