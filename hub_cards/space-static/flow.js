// A flow map in the browser: its exported graph, and the loop of `model.generate` around it.

import { whiteNoise } from "./noise.js";

/** What the Space was built with: the files of its models with their sizes and sums, and puzzles' solutions. */
export async function loadManifest() {
  return JSON.parse(new TextDecoder().decode(await fetched("models/manifest.json")));
}

/**
 * A model of the manifest, whole and as it was when the Space was built.
 *
 * `progress` is told the number of bytes that have come. Whatever is missing or damaged is an Error that names it.
 */
export async function loadModel(described, progress) {
  const parts = {};
  let before = 0;
  for (const [name, { bytes, sha256 }] of Object.entries(described.files)) {
    const path = `models/${described.name}/${name}`;
    const content = await fetched(path, (done) => progress(before + done));
    if ((await sum(content)) !== sha256) {
      throw new Error(`${path} is damaged: it is not the file that this page was built with. ${MEND}`);
    }
    before += bytes;
    parts[name] = content;
  }
  const json = (name) => JSON.parse(new TextDecoder().decode(parts[name]));
  const { ort, Tokenizer } = await vendored();
  let session;
  try {
    session = await ort.InferenceSession.create(parts["model.onnx"], { graphOptimizationLevel: "all" });
  } catch (error) {
    throw new Error(`This browser cannot run the model ${described.name}: ${error.message}`);
  }
  const tokenizer = new Tokenizer(json("tokenizer.json"), json("tokenizer_config.json"));
  return new FlowMap(ort, session, tokenizer, json("flow.json"));
}

const MEND = "Load the page again; if it says the same, the Space has to be built anew (make space-static).";

/** The bytes of a file of this Space. */
async function fetched(path, progress = () => {}) {
  let answer;
  try {
    answer = await fetch(new URL(path, import.meta.url));
  } catch {
    throw new Error(`${path} did not come: is the network there? ${MEND}`);
  }
  if (!answer.ok) throw new Error(`${path} is missing (status ${answer.status}). ${MEND}`);
  const chunks = [];
  let done = 0;
  for (const reader = answer.body.getReader(); ; ) {
    const { value, done: last } = await reader.read();
    if (last) break;
    chunks.push(value);
    progress((done += value.length));
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

async function sum(content) {
  if (!crypto.subtle) throw new Error("Files can be checked over https or from this machine only: open the page so.");
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The libraries in vendor/: imported here, and not above, so that a missing one is a message on the page. */
async function vendored() {
  try {
    const [ort, { Tokenizer }] = await Promise.all([
      import("./vendor/ort.wasm.bundle.min.mjs"),
      import("./vendor/tokenizers.min.mjs"),
    ]);
    ort.env.wasm.wasmPaths = { wasm: new URL("vendor/ort-wasm-simd-threaded.wasm", import.meta.url).href };
    // Threads share memory, which a page has only where its server isolates it.
    ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
    return { ort, Tokenizer };
  } catch (error) {
    throw new Error(`A library in vendor/ is missing or damaged (${error.message}). ${MEND}`);
  }
}

export class FlowMap {
  constructor(ort, session, tokenizer, config) {
    Object.assign(this, config, { ort, session, tokenizer });
    this.special = new Set([this.mask, this.bos]);
    this.maskToken = tokenizer.decode([this.mask]);
  }

  /** drafts */
  async *write({ ids, given, seeds, steps }) {
    const [rows, length] = [seeds.length, ids.length];
    const { Tensor } = this.ort;
    const repeat = (values) => Array.from({ length: rows }, () => values).flat();
    const number = (x) => new Tensor("float32", [x], []);
    const white = whiteNoise(seeds, length, this.width, this.context);
    let state = new Tensor("float32", new Float32Array(rows * length * this.hidden), [rows, length, this.hidden]);
    const t = this.times[steps];
    for (let step = 0; step < steps; step++) {
      const begun = performance.now();
      const out = await this.session.run({
        white: new Tensor("float32", white, [rows, length, this.width]),
        state,
        input_ids: new Tensor("int64", BigInt64Array.from(repeat(ids), BigInt), [rows, length]),
        keep: new Tensor("bool", repeat(given.map(Number)), [rows, length]),
        first: number(step ? 0 : 1),
        tau: number(step / steps),
        target: number((step + 1) / steps),
        weight: number((t[step + 1] - t[step]) / (1 - t[step])),
      });
      state = out.next;
      const drawn = Array.from(out.ids.data, Number);
      const seconds = (performance.now() - begun) / 1000;
      yield { ids: seeds.map((_, row) => drawn.slice(row * length, (row + 1) * length)), seconds };
      await new Promise((done) => setTimeout(done));
    }
  }
}
