// What the reader does: move the pointer, play a walk, draw from the prior.
import { load, makeDecoder } from "./decoder.js";
import { Plane } from "./plane.js";

const TOLERANCE = 1e-4; // of a pixel probability, against Python
const WALK_SECONDS = 4;
const STATUS_DELAY = 700; // ms without a move before the place is spoken
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };

const byId = (id) => document.getElementById(id);
const still = window.matchMedia("(prefers-reduced-motion: reduce)");
const signed = (number) => number.toFixed(2).replace("-", "−");
const place = ([z1, z2]) => `z₁ ${signed(z1)}, z₂ ${signed(z2)}`;

let page, arrays, decode, plane, timer;
let z = [0, 0], label = 0, t = 0, playing = null, seed = 0, frames = 0, waiting = false;

function say(text, delay = STATUS_DELAY) {
  clearTimeout(timer);
  timer = setTimeout(() => { byId("status").textContent = text(); }, delay);
}

/** Draw the pixels of one image, from `offset` on, on a canvas of the image's size. */
function paint(canvas, pixels, offset = 0) {
  const [height, width, channels] = page.image_shape;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  for (let i = 0; i < height * width; i += 1) {
    for (let c = 0; c < 3; c += 1) {
      image.data[4 * i + c] = 255 * pixels[offset + channels * i + (channels >= 3 ? c : 0)];
    }
    image.data[4 * i + 3] = channels === 4 ? 255 * pixels[offset + 4 * i + 3] : 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const walkEnds = () => ["from", "to"].map((id) => page.ends[byId(id).value].anchor);

function samples() {
  const [, n] = arrays.samples.shape;
  const start = 2 * n * seed;
  return Array.from({ length: n }, (_, i) => [...arrays.samples.data.subarray(start + 2 * i, start + 2 * i + 2)]);
}

/** Everything on the page that depends on z, at most once a frame of the screen. */
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    frames += 1;
    paint(byId("digit"), decode(z, label));
    plane.draw(z, walkEnds(), samples());
    ["z1", "z2"].forEach((id, i) => {
      byId(id).value = z[i];
      byId(`${id}-value`).textContent = signed(z[i]);
    });
    byId("nearest").textContent = plane.nearest(z);
  });
}

function moveTo(code, quiet = false) {
  z = code.map((value) => Math.min(Math.max(value, -page.extent), page.extent));
  draw();
  if (!quiet) say(() => `${place(z)}. Nearest test image: ${plane.nearest(z)}.`);
}

function redraw() {
  if (!plane) return;
  plane.resize();
  draw();
}

/** Light or dark as the page around says, which may have a switch, or else as the system says. */
function followTheme(around) {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const follow = () => {
    const named = ["light", "dark"].find((name) => around?.classList.contains(`quarto-${name}`));
    document.documentElement.dataset.theme = named ?? (dark.matches ? "dark" : "light");
    redraw();
  };
  if (around) new MutationObserver(follow).observe(around, { attributeFilter: ["class"] });
  dark.addEventListener("change", follow);
  follow();
}

/** A page inside a page is as high as what it shows, so that nothing in it scrolls. */
function fitFrame(frame) {
  if (!frame) return;
  const fit = () => { frame.style.height = `${document.body.offsetHeight}px`; };
  new ResizeObserver(fit).observe(document.body);
}

function setUpPlane() {
  const canvas = byId("plane");
  plane = new Plane(canvas, page, arrays);
  const follow = (event) => { stop(); moveTo(plane.toCode(event)); };
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); follow(event); });
  canvas.addEventListener("pointermove", follow);
  canvas.addEventListener("keydown", (event) => {
    const step = STEPS[event.key], size = event.shiftKey ? 0.5 : 0.1;
    if ((!step && event.key !== "Home") || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault(); // the page must not scroll
    stop();
    moveTo(step ? [z[0] + step[0] * size, z[1] + step[1] * size] : [0, 0]);
  });
  ["z1", "z2"].forEach((id, i) => {
    Object.assign(byId(id), { min: -page.extent, max: page.extent });
    byId(id).addEventListener("input", (event) => {
      stop();
      moveTo(z.map((value, j) => (i === j ? Number(event.target.value) : value)));
    });
  });
  new ResizeObserver(redraw).observe(canvas);
}

/** The point at share `t` of the way, on the straight line between the two ends. */
function walkTo(share, quiet) {
  t = Math.min(Math.max(share, 0), 1);
  const [a, b] = walkEnds();
  byId("t").value = t;
  byId("t-value").textContent = t.toFixed(2);
  moveTo(a.map((value, i) => (1 - t) * value + t * b[i]), quiet);
}

function stop() {
  playing = null;
  byId("play").textContent = still.matches ? "Next step" : "Play";
}

/** Play or pause. Who asked for less motion gets a tenth of the way with each press. */
function play() {
  if (still.matches) return walkTo(t > 0.999 ? 0 : t + 0.1);
  if (playing) return stop();
  const token = playing = {}, begun = performance.now(), from = t > 0.999 ? 0 : t;
  byId("play").textContent = "Pause";
  const frame = (now) => {
    if (playing !== token) return;
    walkTo(from + Math.max(now - begun, 0) / 1000 / WALK_SECONDS, t < 1);
    if (t < 1) requestAnimationFrame(frame);
    else stop();
  };
  requestAnimationFrame(frame);
}

function setUpWalk() {
  for (const [id, chosen] of [["from", 0], ["to", page.ends.length - 1]]) {
    page.ends.forEach(({ name }, i) => byId(id).add(new Option(name, i, i === chosen, i === chosen)));
    byId(id).addEventListener("change", () => { stop(); walkTo(0); });
  }
  byId("play").addEventListener("click", play);
  byId("t").addEventListener("input", (event) => { stop(); walkTo(Number(event.target.value)); });
  still.addEventListener("change", stop);
  stop();
}

function drawSamples() {
  const codes = samples(), pixels = decode(codes.flat(), label);
  byId("seed-value").textContent = seed;
  [...byId("samples").children].forEach((button, i) => {
    paint(button.firstChild, pixels, i * pixels.length / codes.length);
    button.setAttribute("aria-label", `Sample ${i + 1}: ${place(codes[i])}. Go there.`);
  });
  draw();
}

function setUpSamples() {
  const [seeds, n] = arrays.samples.shape;
  for (let i = 0; i < n; i += 1) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(document.createElement("canvas"));
    button.addEventListener("click", () => { stop(); moveTo(samples()[i]); });
    byId("samples").append(button);
  }
  byId("seed").max = seeds - 1;
  byId("seed").addEventListener("input", (event) => {
    seed = Number(event.target.value);
    drawSamples();
    say(() => `Seed ${seed}: ${n} samples drawn.`);
  });
  drawSamples();
}

/** A model that wants a label beside the code draws everything for the one that is chosen here. */
function setUpLabel() {
  byId("label-row").hidden = !page.labels.length;
  page.labels.forEach((name, i) => byId("label").add(new Option(name, i)));
  byId("label").addEventListener("change", (event) => {
    label = Number(event.target.value);
    drawSamples();
    say(() => `Drawn for the label ${page.labels[label]}.`);
  });
}

function setUpLegend() {
  const space = "http://www.w3.org/2000/svg";
  for (const { name, colour } of page.classes) {
    const item = document.createElement("li"), svg = document.createElementNS(space, "svg");
    const dot = document.createElementNS(space, "circle");
    for (const [key, value] of Object.entries({ cx: 5, cy: 5, r: 5, fill: colour })) dot.setAttribute(key, value);
    svg.setAttribute("viewBox", "0 0 10 10");
    svg.setAttribute("aria-hidden", "true");
    svg.append(dot);
    item.append(svg, name);
    byId("legend").append(item);
  }
  byId("legend").hidden = !page.classes.length;
  byId("about").textContent = page.about;
  const [height, width] = page.image_shape;
  document.documentElement.style.setProperty("--ratio", width / height);
}

/** Decode the codes whose pixels Python put into the file; the largest difference. */
function compare() {
  const last = Math.max(page.labels.length - 1, 0); // the label for which Python decoded, if there are any
  const pixels = decode(arrays.probe_codes.data, last), expected = arrays.probe_pixels.data;
  const worst = pixels.reduce((most, pixel, i) => Math.max(most, Math.abs(pixel - expected[i])), 0);
  byId("check").textContent = `${arrays.probe_codes.shape[0]} codes were decoded here and in Python: `
    + `their pixels differ by ${worst.toExponential(1).replace("-", "−")} at most.`;
  if (!(worst <= TOLERANCE)) throw new Error("the decoder gives other pixels here than in Python");
  return worst;
}

async function start() {
  const frame = window.frameElement; // null where the page stands alone
  followTheme(frame?.ownerDocument.body);
  fitFrame(frame);
  try {
    ({ page, arrays } = await load());
    decode = await makeDecoder(page, arrays);
    const worst = compare();
    setUpLegend();
    setUpLabel();
    setUpWalk();
    setUpPlane();
    setUpSamples();
    moveTo([0, 0], true);
    byId("message").hidden = true;
    return { decode, worst, moveTo, z: () => z, frames: () => frames };
  } catch (error) {
    byId("message").textContent = `The explorer cannot start: ${error.message}.`;
    return { error: error.message };
  }
}

window.explorer = start(); // a promise, for tests and for the curious in the console
