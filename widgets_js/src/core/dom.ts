/** Elements made from text and attributes only: nothing is ever parsed as HTML. */

type Child = Node | string | null | undefined;

interface Attributes {
  class?: string;
  [name: string]: string | number | boolean | undefined;
}

/** Make an element. Strings become text nodes; `false` and `undefined` leave an attribute out, `true` empties it. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  assign(element, attributes);
  for (const child of children) if (child != null) element.append(child);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** The same for SVG. */
export function s<K extends keyof SVGElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): SVGElementTagNameMap[K] {
  const element = document.createElementNS(SVG, tag) as SVGElementTagNameMap[K];
  assign(element, attributes);
  for (const child of children) if (child != null) element.append(child);
  return element;
}

function assign(element: Element, attributes: Attributes): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) attr(element, name, value === true ? "" : value);
  }
}

/** Give an element an attribute; here `true` and `false` are words, as `aria-` attributes want them. */
export function attr(element: Element, name: string, value: unknown): void {
  element.setAttribute(name, String(value));
}

/** Run `use` at every event of a kind. For an element of ours, whose listeners go with it. */
export function listen<K extends keyof HTMLElementEventMap>(
  element: Element,
  kind: K,
  use: (event: HTMLElementEventMap[K]) => void,
  options?: AddEventListenerOptions,
): void {
  element.addEventListener(kind, use as EventListener, options);
}

/** Text from data: isolated, so that right-to-left marks in it cannot turn what stands around it. */
export function bdi(text: string, className?: string): HTMLElement {
  return h("bdi", className ? { class: className } : {}, text);
}
