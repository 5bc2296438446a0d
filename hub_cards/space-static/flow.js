// A flow map in the browser: its exported graph, and the loop of `model.generate` around it.

import { stepSeed, whiteNoise } from "./noise.js";

const MEND = "Load the page again; if it says the same, the Space has to be built anew (make space-static).";
const PARTS = ["model.onnx", "tokenizer.json", "tokenizer_config.json"];

const asJson = (content) => JSON.parse(new TextDecoder().decode(content));

/** What the Space was built with: sizes and sums of its `files`, its `models` by task, `puzzles`. */
export async function loadManifest() {
  return asJson(await fetched("models/manifest.json"));
}

/**
 * The model of a task, whole and as it was when the Space was built.
 *
 * `progress(done, all)` is told how many bytes have come. An Error names what is missing or damaged.
 */
export async function loadModel(manifest, task, progress) {
  const about = manifest.models[task];
  const paths = PARTS.map((part) => `models/${about.name}/${part}`);
  let [done, all] = [0, 0];
  const load = async (path) => {
    const { bytes, sha256 } = manifest.files[path];
    all += bytes;
    const content = await fetched(path, (more) => progress((done += more), all));
    if ((await sum(content)) !== sha256) {
      throw new Error(`${path} is damaged: it is not the file that this page was built with. ${MEND}`);
    }
    return content;
  };
  const [{ ort, Tokenizer }, graph, ...ofTokenizer] = await Promise.all([libraries(load), ...paths.map(load)]);
  let session;
  try {
    // More optimisation takes longer than it saves: the text is there before it would be done.
    session = await ort.InferenceSession.create(graph, { graphOptimizationLevel: "basic" });
  } catch (error) {
    throw new Error(`This browser cannot run ${about.name}: ${error.message}`);
  }
  return new FlowMap(ort, session, Tokenizer, ...ofTokenizer.map(asJson), about);
}

let imported;

/** What is in vendor/, once: imported here, and not above, so that a missing library is a message on the page. */
function libraries(load) {
  imported ??= importAll(load).catch((error) => {
    imported = null;
    throw error;
  });
  return imported;
}

async function importAll(load) {
  const [binary, ort, { Tokenizer }] = await Promise.all([
    load("vendor/ort-wasm-simd-threaded.wasm"),
    library("./vendor/ort.wasm.bundle.min.mjs"),
    library("./vendor/tokenizers.min.mjs"),
  ]);
  ort.env.wasm.wasmBinary = binary.buffer;
  // Threads share memory, which a page has only where its server isolates it.
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  return { ort, Tokenizer };
}

async function library(path) {
  try {
    return await import(path);
  } catch (error) {
    throw new Error(`${path} is missing or damaged (${error.message}). ${MEND}`);
  }
}

/** The bytes of a file of this Space. `progress` is told how many more have come. */
async function fetched(path, progress = () => {}) {
  let answer;
  try {
    // A browser may keep files of an earlier build: "no-cache" asks the server whether they are still its own.
    answer = await fetch(new URL(path, import.meta.url), { cache: "no-cache" });
  } catch {
    throw new Error(`${path} did not come: the network is gone. ${MEND}`);
  }
  if (!answer.ok) throw new Error(`${path} is missing (status ${answer.status}). ${MEND}`);
  const chunks = [];
  let size = 0;
  const reader = answer.body.getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      chunks.push(part.value);
      size += part.value.length;
      progress(part.value.length);
    }
  } catch {
    throw new Error(`${path} did not come whole: the network is gone. ${MEND}`);
  }
  const content = new Uint8Array(size);
  chunks.reduce((place, chunk) => (content.set(chunk, place), place + chunk.length), 0);
  return content;
}

/** The SHA-256 of some bytes, in hexadecimal digits. */
async function sum(content) {
  if (!crypto.subtle) throw new Error("A browser checks files over https or from localhost alone: open the page so.");
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A flow map, with the tokenizer whose ids it writes. */
export class FlowMap {
  constructor(ort, session, Tokenizer, tokenizer, settings, about) {
    this.ort = ort;
    this.session = session;
    this.tokenizer = new Tokenizer(tokenizer, settings);
    this.special = new Set(tokenizer.added_tokens.filter((token) => token.special).map((token) => token.id));
    this.blank = settings.mask_token; // as it stands in a text
    this.about = about;
  }

  /**
   * The drafts of sequences from these seeds, one an evaluation of the network; the last ones are the sequences, the
   * same as those of `model.generate(sampler="flow_map", num_steps=steps, refine_steps=refinements)`.
   *
   * `ids` are those of every sequence, kept where they are `given`, an array of booleans. A draft has `ids`, an array for
   * each seed, and the `seconds` that it took.
   */
  async *write({ ids, given, seeds, steps, refinements = 0 }) {
    const { length: longest, width, noise_width, refine_fraction } = this.about;
    const { Tensor } = this.ort;
    const shape = [seeds.length, ids.length];
    const each = (values) => seeds.flatMap(() => values);
    let drawn = 0; // how many times noise was
    const noise = () => {
      // Later draws have one number more per position, as in `generate`: other samplers draw tokens with it.
      const own = seeds.map((seed) => stepSeed(seed, drawn));
      const numbers = whiteNoise(own, ids.length, noise_width, longest, drawn++ > 0);
      return new Tensor("float32", numbers, [...shape, noise_width]);
    };
    let before = performance.now();
    const split = (values) => seeds.map((_, row) => values.slice(row * ids.length, (row + 1) * ids.length));
    const run = async (row) => {
      // How much noise comes in, row[0], is above 0 after the first step only with gamma above 0.
      if (row[0] > 0) feed.noise = noise();
      feed.step = new Tensor("float32", Float32Array.from(row), [5]);
      const { token_ids, next_state, confidence } = await this.session.run(feed);
      const seconds = (performance.now() - before) / 1000;
      return { draft: Array.from(token_ids.data, Number), state: next_state, sure: confidence.data, seconds };
    };
    const nothing = new Tensor("float32", new Float32Array(seeds.length * ids.length * width), [...shape, width]);
    const feed = {
      state: nothing,
      input_ids: new Tensor("int64", BigInt64Array.from(each(ids), BigInt), shape),
      given: new Tensor("bool", Uint8Array.from(each(given)), shape),
    };
    let draft, sure;
    for (const row of this.about.steps[steps]) {
      const done = await run(row);
      feed.state = done.state;
      ({ draft, sure } = done);
      yield { ids: split(draft), seconds: done.seconds };
      before = performance.now();
    }
    feed.state = nothing;
    for (let number = 0; number < refinements; number++) {
      const share = refine_fraction * (1 - number / refinements);
      const again = split(sure).flatMap((row) => leastCertain(row, given, share));
      feed.input_ids = new Tensor("int64", BigInt64Array.from(draft, BigInt), shape);
      feed.given = new Tensor("bool", Uint8Array.from(again, (written) => !written), shape);
      const done = await run([1, 0, 0, 0, 0]); // asks for the denoiser at the start
      draft = done.draft;
      sure = sure.map((old, place) => (again[place] ? done.sure[place] : old));
      yield { ids: split(draft), seconds: done.seconds };
      before = performance.now();
    }
  }
}

/** Which tokens of a sequence a refinement writes again: a share of those that are not given, the least certain ones. */
function leastCertain(confidence, given, share) {
  const free = given.flatMap((kept, place) => (kept ? [] : [place]));
  const count = Math.ceil(Math.fround(free.length * Math.fround(share))); // as `generate` computes it, in float32
  free.sort((one, other) => confidence[one] - confidence[other]); // stable
  const again = new Set(free.slice(0, count));
  return given.map((_, place) => again.has(place));
}

const MOST_BYTES = 4; // of a character in UTF-8

/** The text of each token. A character that is made of several tokens, as bytes of it are, is the text of the last. */
export function textsOfTokens(ids, decode) {
  let begun = [];
  return ids.map((id, place) => {
    begun.push(id);
    const text = decode(begun);
    if (text.endsWith("\ufffd") && place + 1 < ids.length && begun.length < MOST_BYTES) return "";
    begun = [];
    return text;
  });
}
