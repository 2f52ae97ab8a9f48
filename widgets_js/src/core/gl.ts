/**
 * Many points, drawn with WebGL2 where hardware does it, else pixel by pixel on a 2D canvas: without hardware WebGL2 is
 * drawn by the processor too, and takes ten times as long as we do (`benchmarks/atlas.py`).
 *
 * A page has about sixteen contexts in all: `rest` gives ours back while nobody looks, and leaves a 2D picture of the
 * same points. A context that is lost is replaced by that picture too, until `wake`.
 */

import { h } from "./dom";

export interface PointTable {
  /** 0 … 65,535; y upwards. */
  x: Uint16Array;
  y: Uint16Array;
}

/** How points look: colours by byte, plain ones and those that fade behind them. */
export interface Look {
  /** Colour of each point: its place in the palettes. */
  code: Uint8Array;
  /** Size of each point, 0 … 255. */
  size: Uint8Array;
  /** 1 where a point fades; undefined: none does. */
  faded: Uint8Array | undefined;
  /** 256 opaque RGBA colours, then 256 faded ones. */
  palette: Uint8Array;
}

/** From a share 0 … 1 of both axes to device pixels from the upper left, and diameters in device pixels. */
export interface Placing {
  scale: readonly [number, number];
  shift: readonly [number, number];
  least: number;
  most: number;
}

/** "gl": with WebGL2 even where the processor draws it; "canvas": never with WebGL2. */
export type Draw = "auto" | "gl" | "canvas";

interface Painter {
  readonly canvas: HTMLCanvasElement;
  look(look: Look): void;
  draw(placing: Placing, width: number, height: number): void;
  dispose(): void;
}

export class PointLayer {
  /** Holds the canvas that is in use. */
  readonly element = h("div");
  #painter: Painter;
  #look: Look | undefined;
  #last: [Placing, number, number] | undefined;
  #failed = false;

  constructor(
    private readonly points: PointTable,
    private readonly how: Draw = "auto",
  ) {
    this.#failed = how === "canvas";
    this.#painter = new FlatPainter(points);
    this.element.append(this.#painter.canvas);
  }

  /** "gl" or "flat". */
  get kind(): string {
    return this.#painter instanceof GlPainter ? "gl" : "flat";
  }

  set look(look: Look) {
    this.#look = look;
    this.#painter.look(look);
  }

  /** Draw on a canvas of `width` × `height` device pixels. */
  draw(placing: Placing, width: number, height: number): void {
    this.#last = [placing, width, height];
    if (this.#look && width && height) this.#painter.draw(placing, width, height);
  }

  /** Somebody looks: draw with a context if one can be had. */
  wake(): void {
    if (this.kind === "gl" || this.#failed || (noHardware && this.how === "auto")) return;
    try {
      this.#use(new GlPainter(this.points, this.how === "gl", () => this.rest()));
    } catch {
      this.#failed = true; // No hardware, no context left, or a shader that does not compile: the 2D picture stays.
    }
  }

  /** Nobody looks, or the context was lost: give it back, and keep a picture. */
  rest(): void {
    if (this.kind === "gl") this.#use(new FlatPainter(this.points));
  }

  dispose(): void {
    this.#painter.dispose();
  }

  #use(next: Painter): void {
    const old = this.#painter;
    this.#painter = next;
    if (this.#look) next.look(this.#look);
    if (this.#last) this.draw(...this.#last);
    this.element.replaceChildren(next.canvas);
    old.dispose();
  }
}

/** Renderers that are the processor; not every browser counts them as a caveat. */
const SOFTWARE = /swiftshader|llvmpipe|softpipe|software|basic render/i;

/** Found once: to ask is to make a context. */
let noHardware = false;

function rendererOf(gl: WebGL2RenderingContext): string {
  const named = gl.getExtension("WEBGL_debug_renderer_info");
  return String(gl.getParameter(named ? named.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
}

const VERTEX = `#version 300 es
in vec2 place;
in float code, size, faded;
uniform vec4 view;
uniform vec2 span;
uniform sampler2D palette;
flat out vec3 colour;
flat out float edge;
void main() {
  gl_Position = vec4(place * view.xy + view.zw, 0, 1);
  float d = mix(span.x, span.y, size);
  gl_PointSize = d;
  edge = d;
  colour = texelFetch(palette, ivec2(int(code * 255. + .5), int(faded * 255. + .5)), 0).rgb;
}`;
// Small points are squares: nobody sees the difference, and a software renderer draws them in half the time.
const FRAGMENT = `#version 300 es
precision mediump float;
flat in vec3 colour;
flat in float edge;
out vec4 shown;
void main() {
  float a = 1.;
  if (edge > 3.5) a = clamp((1. - length(gl_PointCoord * 2. - 1.)) * edge * .5 + .5, 0., 1.);
  shown = vec4(colour * a, a);
}`;

class GlPainter implements Painter {
  readonly canvas = h("canvas");
  readonly #gl: WebGL2RenderingContext;
  readonly #program: WebGLProgram;
  readonly #buffers: Record<string, WebGLBuffer>;
  readonly #order: WebGLBuffer;
  #ordered = false;
  #disposed = false;

  constructor(
    private readonly points: PointTable,
    software: boolean,
    private readonly onLost: () => void,
  ) {
    const settings: WebGLContextAttributes = {
      antialias: false,
      depth: false,
      failIfMajorPerformanceCaveat: !software,
    };
    const gl = this.canvas.getContext("webgl2", settings) as WebGL2RenderingContext | null;
    if (!gl) throw new Error("no WebGL2");
    this.#gl = gl;
    if (!software && SOFTWARE.test(rendererOf(gl))) {
      noHardware = true;
      this.dispose();
      throw new Error("no hardware");
    }
    this.canvas.addEventListener("webglcontextlost", this.#lost);
    this.#program = linked(gl);
    gl.useProgram(this.#program);
    const place = new Uint16Array(points.x.length * 2);
    for (let i = 0; i < points.x.length; i += 1) {
      place[2 * i] = points.x[i] as number;
      place[2 * i + 1] = points.y[i] as number;
    }
    this.#buffers = {
      place: attribute(gl, this.#program, "place", 2, gl.UNSIGNED_SHORT),
      code: attribute(gl, this.#program, "code", 1, gl.UNSIGNED_BYTE),
      size: attribute(gl, this.#program, "size", 1, gl.UNSIGNED_BYTE),
      faded: attribute(gl, this.#program, "faded", 1, gl.UNSIGNED_BYTE),
    };
    this.#fill("place", place);
    this.#order = gl.createBuffer();
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    for (const which of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER])
      gl.texParameteri(gl.TEXTURE_2D, which, gl.NEAREST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  look({ code, size, faded, palette }: Look): void {
    const gl = this.#gl;
    this.#fill("code", code);
    this.#fill("size", size);
    this.#fill("faded", faded ? faded.map((one) => (one ? 1 : 0)) : new Uint8Array(code.length));
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 2, 0, gl.RGBA, gl.UNSIGNED_BYTE, palette);
    this.#ordered = faded !== undefined;
    if (!faded) return;
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.#order);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, fadedFirst(faded), gl.DYNAMIC_DRAW);
  }

  draw({ scale, shift, least, most }: Placing, width: number, height: number): void {
    const gl = this.#gl;
    sized(this.canvas, width, height);
    gl.viewport(0, 0, width, height);
    const at = (name: string) => gl.getUniformLocation(this.#program, name);
    // Pixels run downwards, the clip space upwards.
    gl.uniform4f(
      at("view"),
      (2 * scale[0]) / width,
      (-2 * scale[1]) / height,
      (2 * shift[0]) / width - 1,
      1 - (2 * shift[1]) / height,
    );
    gl.uniform2f(at("span"), least, most);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    const count = this.points.x.length;
    if (this.#ordered) gl.drawElements(gl.POINTS, count, gl.UNSIGNED_INT, 0);
    else gl.drawArrays(gl.POINTS, 0, count);
  }

  dispose(): void {
    this.#disposed = true;
    this.canvas.removeEventListener("webglcontextlost", this.#lost);
    this.#gl.getExtension("WEBGL_lose_context")?.loseContext();
  }

  readonly #lost = (): void => {
    if (!this.#disposed) this.onLost();
  };

  #fill(name: string, values: Uint8Array | Uint16Array): void {
    this.#gl.bindBuffer(this.#gl.ARRAY_BUFFER, this.#buffers[name] ?? null);
    this.#gl.bufferData(this.#gl.ARRAY_BUFFER, values, this.#gl.DYNAMIC_DRAW);
  }
}

function linked(gl: WebGL2RenderingContext): WebGLProgram {
  const program = gl.createProgram();
  for (const [kind, text] of [
    [gl.VERTEX_SHADER, VERTEX],
    [gl.FRAGMENT_SHADER, FRAGMENT],
  ] as const) {
    const shader = gl.createShader(kind);
    if (!shader) throw new Error("no shader");
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program) ?? "no program");
  return program;
}

function attribute(
  gl: WebGL2RenderingContext,
  program: WebGLProgram,
  name: string,
  count: number,
  type: number,
): WebGLBuffer {
  const buffer = gl.createBuffer();
  const at = gl.getAttribLocation(program, name);
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.enableVertexAttribArray(at);
  gl.vertexAttribPointer(at, count, type, true, 0, 0);
  return buffer;
}

/** The numbers of the points, those that fade before the others. */
function fadedFirst(faded: Uint8Array): Uint32Array {
  const order = new Uint32Array(faded.length);
  let at = 0;
  for (const first of [1, 0]) {
    for (let i = 0; i < faded.length; i += 1) if (Number(faded[i] !== 0) === first) order[at++] = i;
  }
  return order;
}

/** Setting a size clears a canvas: only where it changes. */
function sized(canvas: HTMLCanvasElement, width: number, height: number): void {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
}

/** Discs as spans of pixels, one list per size. */
function discs(least: number, most: number): Int32Array[] {
  return Array.from({ length: 16 }, (_, step) => {
    const size = Math.max(1, Math.round(least + ((most - least) * step) / 15));
    const spans: number[] = [];
    for (let row = 0; row < size; row += 1) {
      const away = Math.abs(row + 0.5 - size / 2);
      const half = size < 4 ? size / 2 : Math.sqrt(Math.max(0, (size * size) / 4 - away * away));
      const from = Math.round(size / 2 - half);
      spans.push(row - (size >> 1), from - (size >> 1), Math.max(1, Math.round(2 * half)));
    }
    return Int32Array.from(spans);
  });
}

class FlatPainter implements Painter {
  readonly canvas = h("canvas");
  #look: Look | undefined;

  constructor(private readonly points: PointTable) {}

  look(look: Look): void {
    this.#look = look;
  }

  draw({ scale, shift, least, most }: Placing, width: number, height: number): void {
    const context = this.canvas.getContext("2d");
    if (!context || !this.#look) return;
    sized(this.canvas, width, height);
    const { code, size, faded, palette } = this.#look;
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const colours = new Uint32Array(palette.buffer, palette.byteOffset, 512);
    const shapes = discs(least, most);
    const { x, y } = this.points;
    for (const first of faded ? [1, 0] : [0]) {
      for (let i = 0; i < x.length; i += 1) {
        if (faded && Number(faded[i] !== 0) !== first) continue;
        const left = Math.round(((x[i] as number) / 65_535) * scale[0] + shift[0]);
        const top = Math.round(((y[i] as number) / 65_535) * scale[1] + shift[1]);
        if (left < -40 || top < -40 || left > width + 40 || top > height + 40) continue;
        const colour = colours[(code[i] as number) + 256 * first] as number;
        const spans = shapes[(size[i] as number) >> 4] as Int32Array;
        for (let at = 0; at < spans.length; at += 3) {
          const row = top + (spans[at] as number);
          if (row < 0 || row >= height) continue;
          const from = Math.max(0, left + (spans[at + 1] as number));
          const to = Math.min(width, left + (spans[at + 1] as number) + (spans[at + 2] as number));
          for (let pixel = row * width + from; pixel < row * width + to; pixel += 1) pixels[pixel] = colour;
        }
      }
    }
    context.putImageData(image, 0, 0);
  }

  dispose(): void {}
}
