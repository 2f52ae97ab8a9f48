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
  /** 1 where a point fades, else 0; undefined: none does. */
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

export interface PointLayer {
  /** Holds the canvas that is in use. */
  readonly element: HTMLElement;
  kind(): "gl" | "flat";
  look(look: Look): void;
  /** Draw on a canvas of `width` × `height` device pixels. */
  draw(placing: Placing, width: number, height: number): void;
  /** Somebody looks: draw with a context if one can be had. */
  wake(): void;
  /** Nobody looks, or the context was lost: give it back, and keep a picture. */
  rest(): void;
  dispose(): void;
}

export function pointLayer(points: PointTable, how: Draw = "auto"): PointLayer {
  let painter = flatPainter(points);
  let kind: "gl" | "flat" = "flat";
  let failed = how === "canvas";
  let shown: Look | undefined;
  let last: [Placing, number, number] | undefined;
  const element = h("div", {}, painter.canvas);
  const draw = () => {
    if (shown && last?.[1] && last[2]) painter.draw(...last);
  };
  const use = (next: Painter, what: "gl" | "flat") => {
    const old = painter;
    [painter, kind] = [next, what];
    if (shown) next.look(shown);
    draw();
    element.replaceChildren(next.canvas);
    old.dispose();
  };
  const rest = () => {
    if (kind === "gl") use(flatPainter(points), "flat");
  };
  return {
    element,
    kind: () => kind,
    look: (look) => {
      shown = look;
      painter.look(look);
    },
    draw: (...next) => {
      last = next;
      draw();
    },
    wake: () => {
      if (kind === "gl" || failed || (noHardware && how === "auto")) return;
      try {
        use(glPainter(points, how === "gl", rest), "gl");
      } catch {
        failed = true; // No hardware, no context left, or a shader that does not compile: the 2D picture stays.
      }
    },
    rest,
    dispose: () => painter.dispose(),
  };
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
in vec2 place;in float code,size,faded;uniform vec4 view;uniform vec3 span;uniform sampler2D palette;
flat out vec3 c;flat out float d;void main(){
gl_Position=vec4(place*view.xy+view.zw,abs(faded*255.-span.z)*9.,1);
d=gl_PointSize=mix(span.x,span.y,size);
c=texelFetch(palette,ivec2(int(code*255.+.5),int(faded*255.+.5)),0).rgb;}`;
// Small points are squares: nobody sees the difference.
const FRAGMENT = `#version 300 es
precision mediump float;flat in vec3 c;flat in float d;out vec4 o;void main(){
float a=d>3.5?clamp((1.-length(gl_PointCoord*2.-1.))*d*.5+.5,0.,1.):1.;
o=vec4(c*a,a);}`;

function glPainter(points: PointTable, software: boolean, onLost: () => void): Painter {
  const canvas = h("canvas");
  const settings: WebGLContextAttributes = {
    antialias: false,
    depth: false,
    failIfMajorPerformanceCaveat: !software,
  };
  const gl = canvas.getContext("webgl2", settings) as WebGL2RenderingContext | null;
  if (!gl) throw new Error("no WebGL2");
  const dispose = () => {
    canvas.removeEventListener("webglcontextlost", onLost);
    gl.getExtension("WEBGL_lose_context")?.loseContext();
  };
  if (!software && SOFTWARE.test(rendererOf(gl))) {
    noHardware = true;
    dispose();
    throw new Error("no hardware");
  }
  canvas.addEventListener("webglcontextlost", onLost);
  const count = points.x.length;
  const program = linked(gl);
  gl.useProgram(program);
  /** Fill an attribute of the points; what was there before is replaced. */
  const attribute = (name: string, type: number, size: number) => {
    const buffer = gl.createBuffer();
    const at = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.enableVertexAttribArray(at);
    gl.vertexAttribPointer(at, size, type, true, 0, 0);
    return (values: Uint8Array | Uint16Array) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
    };
  };
  const place = new Uint16Array(count * 2);
  for (let i = 0; i < count; i += 1) {
    place[2 * i] = points.x[i] as number;
    place[2 * i + 1] = points.y[i] as number;
  }
  attribute("place", gl.UNSIGNED_SHORT, 2)(place);
  const [setCode, setSize, setFaded] = ["code", "size", "faded"].map((name) => attribute(name, gl.UNSIGNED_BYTE, 1));
  const [view, span] = ["view", "span"].map((name) => gl.getUniformLocation(program, name));
  let passes = [0];
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  for (const which of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER])
    gl.texParameteri(gl.TEXTURE_2D, which, gl.NEAREST);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  return {
    canvas,
    look: ({ code, size, faded, palette }) => {
      setCode?.(code);
      setSize?.(size);
      setFaded?.(faded ?? new Uint8Array(count));
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 2, 0, gl.RGBA, gl.UNSIGNED_BYTE, palette);
      passes = faded ? [1, 0] : [0];
    },
    draw: ({ scale, shift, least, most }, width, height) => {
      sized(canvas, width, height);
      gl.viewport(0, 0, width, height);
      // Pixels run downwards, the clip space upwards.
      const across = [(2 * scale[0]) / width, (-2 * scale[1]) / height] as const;
      gl.uniform4f(view ?? null, ...across, (2 * shift[0]) / width - 1, 1 - (2 * shift[1]) / height);
      gl.clear(gl.COLOR_BUFFER_BIT);
      // Points of the other pass lie behind what can be seen.
      for (const pass of passes) {
        gl.uniform3f(span ?? null, least, most, pass);
        gl.drawArrays(gl.POINTS, 0, count);
      }
    },
    dispose,
  };
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

function flatPainter({ x, y }: PointTable): Painter {
  const canvas = h("canvas");
  let shown: Look | undefined;
  return {
    canvas,
    look: (look) => {
      shown = look;
    },
    draw: ({ scale, shift, least, most }, width, height) => {
      const context = canvas.getContext("2d");
      if (!context || !shown) return;
      sized(canvas, width, height);
      const { code, size, faded, palette } = shown;
      const image = context.createImageData(width, height);
      const pixels = new Uint32Array(image.data.buffer);
      const colours = new Uint32Array(palette.buffer, palette.byteOffset, 512);
      const shapes = discs(least, most);
      // Read in a loop over every point.
      const [scaleX, scaleY, shiftX, shiftY] = [scale[0] / 65_535, scale[1] / 65_535, ...shift];
      for (const first of faded ? [1, 0] : [0]) {
        for (let i = 0; i < x.length; i += 1) {
          if (faded && faded[i] !== first) continue;
          const left = Math.round((x[i] as number) * scaleX + shiftX);
          const top = Math.round((y[i] as number) * scaleY + shiftY);
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
    },
    dispose: () => {},
  };
}
