// The picture of the plane: test images as dots, names at the middle of their clouds, the pointer.

const TAU = 2 * Math.PI;

export class Plane {
  constructor(canvas, page, arrays) {
    Object.assign(this, { canvas, classes: page.classes, extent: page.extent });
    this.codes = arrays.codes.data; // n × 2
    this.labels = arrays.labels.data; // n indices into `classes`, or none where nothing has a label
    this.context = canvas.getContext("2d");
    this.base = document.createElement("canvas");
    this.resize();
  }

  /** From z to CSS pixels; z₂ grows upwards. */
  toPixels([z1, z2]) {
    const half = this.size / 2;
    return [half + z1 / this.extent * half, half - z2 / this.extent * half];
  }

  /** From a pointer event to z. */
  toCode(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = (event.clientX - box.left - this.canvas.clientLeft) / this.size;
    const y = (event.clientY - box.top - this.canvas.clientTop) / this.size;
    return [(2 * x - 1) * this.extent, (1 - 2 * y) * this.extent];
  }

  /** The name of the nearest test image: that of its class, or else its number; a dash if there are no images. */
  nearest([z1, z2]) {
    let best = -1, least = Infinity;
    for (let i = 0; 2 * i < this.codes.length; i += 1) {
      const distance = (this.codes[2 * i] - z1) ** 2 + (this.codes[2 * i + 1] - z2) ** 2;
      if (distance < least) [best, least] = [i, distance];
    }
    if (best < 0) return "–";
    return this.labels.length ? this.classes[this.labels[best]].name : `number ${best + 1}`;
  }

  /** Fit the canvas to its place and draw what does not move. */
  resize() {
    const ratio = window.devicePixelRatio || 1;
    this.size = this.canvas.clientWidth;
    for (const canvas of [this.canvas, this.base]) {
      canvas.width = canvas.height = Math.round(this.size * ratio);
      canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
    }
    const style = getComputedStyle(document.documentElement);
    [this.ink, this.back, this.line] = ["--ink", "--back", "--line"].map((n) => style.getPropertyValue(n));
    this.drawBase(this.base.getContext("2d"));
  }

  drawBase(context) {
    context.fillStyle = this.back;
    context.fillRect(0, 0, this.size, this.size);
    this.drawAxes(context);
    context.globalAlpha = 0.6;
    for (let i = 0; 2 * i < this.codes.length; i += 1) {
      const [x, y] = this.toPixels([this.codes[2 * i], this.codes[2 * i + 1]]);
      context.fillStyle = this.labels.length ? this.classes[this.labels[i]].colour : this.ink;
      context.fillRect(x - 1, y - 1, 2, 2);
    }
    context.globalAlpha = 1;
    for (const { name, colour, centre } of this.classes) this.drawName(context, name, colour, this.toPixels(centre));
  }

  drawAxes(context) {
    context.strokeStyle = context.fillStyle = this.line;
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    const last = Math.ceil(this.extent) - 1;
    for (let z = -last; z <= last; z += 1) {
      const [x, y] = this.toPixels([z, z]);
      context.globalAlpha = z === 0 ? 0.7 : 0.2;
      for (const [from, to] of [[[x, 0], [x, this.size]], [[0, y], [this.size, y]]]) {
        context.beginPath();
        context.moveTo(...from);
        context.lineTo(...to);
        context.stroke();
      }
      context.globalAlpha = 1;
      context.fillStyle = this.ink;
      context.fillText(z, x, this.size - 9);
      context.fillText(z, 11, y);
    }
    context.fillText("z₁", this.size - 12, this.size - 10);
    context.fillText("z₂", 12, 12);
  }

  drawName(context, name, colour, [x, y]) {
    context.font = "bold 14px system-ui, sans-serif";
    const half = Math.max(11, context.measureText(name).width / 2 + 7); // a circle, or longer for a long name
    const middle = Math.min(Math.max(x, half + 2), this.size - half - 2);
    context.beginPath();
    context.roundRect(middle - half, y - 11, 2 * half, 22, 11);
    context.fillStyle = this.back;
    context.fill();
    context.lineWidth = 3;
    context.strokeStyle = colour;
    context.stroke();
    context.lineWidth = 1;
    context.fillStyle = this.ink;
    context.fillText(name, middle, y + 1);
  }

  /** One frame: the fixed picture, the walk, the samples as squares, the pointer as a ring. */
  draw(z, walk, samples) {
    const { context } = this;
    context.drawImage(this.base, 0, 0, this.size, this.size);
    context.strokeStyle = context.fillStyle = this.ink;
    context.setLineDash([5, 4]);
    context.beginPath();
    context.moveTo(...this.toPixels(walk[0]));
    context.lineTo(...this.toPixels(walk[1]));
    context.stroke();
    context.setLineDash([]);
    for (const sample of samples) {
      const [x, y] = this.toPixels(sample);
      context.strokeRect(x - 3.5, y - 3.5, 7, 7);
    }
    const [x, y] = this.toPixels(z);
    for (const [colour, width] of [[this.back, 6], [this.ink, 3]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      context.arc(x, y, 8, 0, TAU);
      context.stroke();
    }
    context.lineWidth = 1;
  }
}
