// The trained decoder in the browser: TensorFlow.js runs the layers that explorer.json lists.
const { tf } = globalThis;

/**
 * A transposed convolution (padding "same") as an ordinary one, for which the runtime has fast code:
 * pixel s q + r of the output gets K[k] h[q - m] for all k = r + a + s m. So one convolution over
 * the shifts m makes the s × s phases r as channels, and `spread` moves them to their places.
 */
function phases([kernel, bias], stride) {
  const [size, , outputs, inputs] = kernel.shape;
  const cut = Math.floor((size - stride) / 2);
  const first = -Math.floor((stride - 1 + cut) / stride), last = Math.floor((size - 1 - cut) / stride);
  const width = last - first + 1, channels = stride * stride * outputs;
  const source = kernel.dataSync(), filter = new Float32Array(width * width * inputs * channels);
  const taps = [];
  for (let r = 0; r < stride; r += 1) {
    for (let m = first; m <= last; m += 1) {
      const k = r + cut + stride * m;
      if (k >= 0 && k < size) taps.push({ r, k, j: last - m });
    }
  }
  for (const row of taps) {
    for (const column of taps) {
      for (let i = 0; i < inputs; i += 1) {
        for (let o = 0; o < outputs; o += 1) {
          const to = ((row.j * width + column.j) * inputs + i) * channels + (row.r * stride + column.r) * outputs + o;
          filter[to] = source[((row.k * size + column.k) * outputs + o) * inputs + i];
        }
      }
    }
  }
  const pad = [[0, 0], [last, -first], [last, -first], [0, 0]];
  return { pad, bias: tf.tile(bias, [stride * stride]), filter: tf.tensor(filter, [width, width, inputs, channels]) };
}

/** From (n, height, width, s × s × channels) to (n, s × height, s × width, channels). */
function spread(y, stride) {
  const [n, height, width, channels] = y.shape;
  const rows = tf.reshape(y, [n * height, width, stride, channels / stride]);
  return tf.reshape(tf.transpose(rows, [0, 2, 1, 3]),
    [n, stride * height, stride * width, channels / stride ** 2]);
}

// Each makes a function of h. Bias and ReLU are part of the products, which saves passes over h.
const OPERATIONS = {
  dense: ({ activation }, [kernel, bias]) => (h) => tf.fused.matMul({ a: h, b: kernel, bias, activation }),
  reshape: ({ shape }) => (h) => tf.reshape(h, [-1, ...shape]),
  crop: ({ excess: [rows, columns] }) => (h) => tf.slice(h, [0, rows[0], columns[0], 0],
    [-1, h.shape[1] - rows[0] - rows[1], h.shape[2] - columns[0] - columns[1], -1]),
  conv_transpose: ({ stride, activation }, tensors) => {
    const settings = { ...phases(tensors, stride), strides: 1, activation };
    return (h) => {
      const y = tf.fused.conv2d({ x: h, ...settings });
      return stride === 1 ? y : spread(y, stride);
    };
  },
};

const within = (value, bound) => Math.min(Math.max(value, -bound), bound);
const softplus = (value) => Math.max(value, 0) + Math.log1p(Math.exp(-Math.abs(value)));

// The expected pixel, from the one or two numbers that the decoder puts out for it (chapters 04 and 25).
const MEANS = {
  bernoulli: (a) => 1 / (1 + Math.exp(-a)),
  continuous_bernoulli: (a) => (Math.abs(a) < 1e-3 ? 0.5 + a / 12 : 1 / (1 - Math.exp(-a)) - 1 / a),
  discretized_logistic: (location, logScale) => {
    const centre = within(location, 1e3), scale = Math.exp(within(logScale, 7));
    return within(scale * (softplus(centre / scale) - softplus((centre - 1) / scale)), 1);
  },
};

/** From the decoder's numbers, a pixel's first ones for all channels before its second ones, to pixels. */
function expected(mean, numbers, channels) {
  const each = mean.length, pixels = new Float32Array(numbers.length / each);
  for (let i = 0; i < pixels.length; i += 1) {
    const first = Math.floor(i / channels) * channels * each + i % channels;
    pixels[i] = mean(numbers[first], numbers[first + channels]);
  }
  return pixels;
}

/** What goes into the decoder: each code, and, where it wants a label beside it, a 1 at the label's place. */
function inputs(codes, labels, label) {
  const n = codes.length / 2, width = 2 + labels.length, rows = new Float32Array(n * width);
  for (let i = 0; i < n; i += 1) {
    rows.set([codes[2 * i], codes[2 * i + 1]], i * width);
    if (labels.length) rows[i * width + 2 + label] = 1;
  }
  return tf.tensor(rows, [n, width], "float32");
}

async function get(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: ${response.status} ${response.statusText}`);
  return response;
}

/** explorer.json, its arrays cut out of explorer.bin (little-endian float32, one after the other). */
export async function load() {
  const [page, buffer] = await Promise.all([
    get("explorer.json").then((response) => response.json()),
    get("explorer.bin").then((response) => response.arrayBuffer()),
  ]);
  const arrays = {};
  let start = 0;
  for (const { name, shape } of page.arrays) {
    const size = shape.reduce((product, n) => product * n, 1);
    if (4 * (start + size) > buffer.byteLength) throw new Error("explorer.bin is too short");
    arrays[name] = { shape, data: new Float32Array(buffer, 4 * start, size) };
    start += size;
  }
  if (4 * start !== buffer.byteLength) throw new Error("explorer.bin is too long");
  return { page, arrays };
}

/** The function from codes, n × 2 numbers, and a label to expected pixels, n × height × width × channels. */
export async function makeDecoder(page, arrays) {
  tf.wasm.setWasmPaths("runtime/");
  tf.env().set("WASM_HAS_MULTITHREAD_SUPPORT", false); // that file is not shipped
  if (!await tf.setBackend("wasm")) throw new Error("this browser does not run WebAssembly");
  const tensor = ({ data, shape }) => tf.tensor(data, shape, "float32");
  const layers = page.layers.map((layer) => OPERATIONS[layer.operation](
    layer, layer.arrays.map((name) => tensor(arrays[name])),
  ));
  return (codes, label = 0) => tf.tidy(() => {
    const numbers = layers.reduce((h, layer) => layer(h), inputs(codes, page.labels, label)).dataSync();
    return expected(MEANS[page.likelihood], numbers, page.image_shape[2]);
  });
}
