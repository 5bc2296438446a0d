// The page: what is asked for, in its forms and in its address, and how what comes of it is shown.
//
// A task is asked for by its fields, which the address has too, behind the #: a link leads to the same text again.
// `model.write` of flow.js gives the drafts; `Desk` shows them, whatever they are drafts of.

import { loadManifest, loadModel, textsOfTokens } from "./flow.js";
import { asText, conflicts, fromText, isValid, newPuzzle } from "./sudoku.js";

const PACE = 350; // milliseconds for which a draft is shown
const MOST_SEEDS = 1e6; // seeds that the page draws are short enough to be told
const BLANK = /\s*___/g; // a token holds the space before its word: so does what goes into a blank

const element = (id) => document.getElementById(id);
const anySeed = () => Math.floor(Math.random() * MOST_SEEDS);
const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const counted = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
const isStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** A whole number of the address in a range, or what it is where the address has none. */
function within(address, name, lowest, highest, otherwise) {
  const number = Number(address.get(name) ?? NaN);
  return Number.isInteger(number) && number >= lowest && number <= highest ? number : otherwise;
}

/** What the user can be told and mend: a text too long, a puzzle without a solution. */
class Refusal extends Error {}

/** A form, and the result beside it. Each kind of task says how it is asked for and shown. */
class Desk {
  constructor(name, button) {
    this.name = name;
    this.button = button;
    this.form = element(name);
    this.figures = this.form.querySelector(".figures");
    this.player = this.form.querySelector(".player");
    [this.play, this.slider, this.count] = this.player.querySelectorAll("button, input, .value");
    this.drafts = [];
    this.runs = this.plays = 0; // so far: an older one stops when a newer begins
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.form.seed.value = anySeed();
      this.run();
    });
    for (const field of [this.form.steps, this.form.seed]) {
      field.addEventListener("change", () => this.form.reportValidity() && this.run());
    }
    this.play.addEventListener("click", () => this.replay());
    this.slider.addEventListener("input", () => {
      this.plays++;
      this.show(this.slider.valueAsNumber - 1);
    });
  }

  /** Fill the fields from the address. */
  read(address) {
    this.form.steps.value = within(address, "steps", 1, 8, this.usual);
    this.form.seed.value = within(address, "seed", 0, 2 ** 32 - 1, anySeed());
  }

  /** Fill the address from the fields. */
  remember() {
    const fields = { task: this.name, ...this.address(), steps: this.form.steps.value, seed: this.form.seed.value };
    const hash = `#${new URLSearchParams(fields)}`;
    history.replaceState(null, "", hash);
    element(`to-${this.name}`).href = hash; // back from the other task, all is as it was
    // A Space is shown in a frame of the Hub's page, which keeps the address.
    if (window.parent !== window) window.parent.postMessage({ hash }, "https://huggingface.co");
  }

  get evaluations() {
    return Number(this.form.steps.value);
  }

  async run() {
    const run = ++this.runs;
    showValues();
    this.remember();
    this.figures.textContent = "";
    this.form.classList.remove("refused");
    this.form.ariaBusy = true;
    element("error").hidden = true;
    try {
      this.loading ??= load(this.name);
      this.model = await this.loading;
      if (run !== this.runs) return;
      const asked = this.ask(this.model);
      const drafts = [];
      let seconds = 0;
      for await (const draft of this.model.write(asked)) {
        await wait(0); // the page answers between two evaluations
        if (run !== this.runs) return;
        seconds += draft.seconds;
        drafts.push(draft.ids);
      }
      this.plays++;
      this.asked = asked;
      this.drafts = drafts;
      const free = asked.seeds.length * asked.given.filter((given) => !given).length;
      const speed = Math.round(free / seconds).toLocaleString("en");
      const took = `${Math.round(1000 * seconds).toLocaleString("en")} ms`;
      const cost = `${counted(drafts.length, "evaluation")} of the network, ${took}, ${speed} ${this.unit} a second.`;
      this.tell(`${this.outcome()}: ${cost}`, this.spoken());
      this.player.hidden = drafts.length === 1;
      this.slider.max = drafts.length;
      if (drafts.length > 1 && !isStill()) this.replay();
      else this.show(drafts.length - 1);
    } catch (error) {
      if (!this.model) this.loading = null; // the next run tries again
      if (run !== this.runs) return;
      if (!(error instanceof Refusal)) return fail(error);
      this.form.classList.add("refused");
      this.tell(error.message, "");
    } finally {
      if (run === this.runs) this.form.ariaBusy = false;
    }
  }

  /** Leave what is being written or played. */
  stop() {
    this.runs++;
    this.plays++;
    this.form.ariaBusy = false;
  }

  async replay() {
    const play = ++this.plays;
    for (let draft = 0; draft < this.drafts.length; draft++) {
      if (play !== this.plays) return;
      this.show(draft);
      await wait(PACE);
    }
  }

  show(draft) {
    this.slider.value = draft + 1;
    this.count.textContent = `${draft + 1} of ${this.drafts.length}`;
    this.display(draft);
  }

  /** Figures for all to see, and with what was written for who hears the page. */
  tell(figures, spoken) {
    this.figures.textContent = figures;
    element("said").textContent = `${spoken} ${figures}`.trim();
  }
}

class TextDesk extends Desk {
  unit = "tokens";
  usual = 1; // evaluations

  constructor() {
    super("text", element("write"));
    this.form.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.form.requestSubmit(this.button);
    });
  }

  read(address) {
    super.read(address);
    this.form.prompt.value = address.get("prompt") ?? "";
  }

  address() {
    const prompt = this.form.prompt.value.trim();
    return prompt ? { prompt } : {};
  }

  ask(model) {
    const { length: context, mask_token_id: mask, bos_token_id: bos } = model.about;
    const text = this.form.prompt.value.trim().replace(BLANK, model.blank);
    let ids = text ? model.tokenizer.encode(text, { add_special_tokens: false }).ids : [];
    if (ids.length && ids[0] !== bos) ids = [bos, ...ids]; // rows of training text begin with it
    const blanks = ids.includes(mask);
    const longest = blanks ? context : context - 1;
    if (ids.length > longest) {
      throw new Refusal(`The text has ${ids.length} tokens, and the model takes ${longest} at most: shorten it.`);
    }
    const length = blanks ? ids.length : context;
    const all = Array.from({ length }, (_, place) => ids[place] ?? mask);
    const given = all.map((id) => id !== mask);
    return { ids: all, given, seeds: [Number(this.form.seed.value)], steps: this.evaluations };
  }

  outcome() {
    return counted(this.asked.given.filter((given) => !given).length, "token");
  }

  spoken() {
    const { tokenizer, special } = this.model;
    const ids = Array.from(this.drafts.at(-1)[0]).filter((id) => !special.has(id));
    return ids.length ? tokenizer.decode(ids) : ""; // which it does not decode
  }

  display(draft) {
    const before = this.drafts[draft - 1]?.[0];
    const ids = Array.from(this.drafts[draft][0]);
    const texts = textsOfTokens(ids, (some) => this.model.tokenizer.decode(some));
    const tokens = ids.map((id, place) => {
      const token = document.createElement("span");
      token.textContent = texts[place];
      token.dataset.id = id;
      if (this.model.special.has(id)) token.classList.add("special");
      if (this.asked.given[place]) token.classList.add("given");
      else if (before && before[place] !== id) token.classList.add("changed");
      return token;
    });
    element("written").replaceChildren(...tokens);
  }
}

class SudokuDesk extends Desk {
  unit = "cells";
  usual = 8;

  constructor() {
    super("sudoku", element("fill"));
    this.puzzle = Array(81).fill(0);
    this.cells = this.puzzle.map((_, cell) => this.makeCell(cell));
    const rows = this.cells.filter((_, cell) => cell % 9 === 0).map((_, row) => {
      const line = document.createElement("tr");
      for (const input of this.cells.slice(9 * row, 9 * row + 9)) line.insertCell().append(input);
      return line;
    });
    element("grid").replaceChildren(...rows);
    element("puzzle").addEventListener("click", () => {
      this.puzzle = newPuzzle(manifest.puzzles, this.form.clues.valueAsNumber);
      this.clear();
      if (this.form.reportValidity()) this.run();
    });
    this.form.attempts.addEventListener("change", () => this.form.reportValidity() && this.run());
  }

  makeCell(cell) {
    const input = document.createElement("input");
    input.inputMode = "numeric";
    input.autocomplete = "off";
    input.tabIndex = cell ? -1 : 0; // one stop of the Tab key: the arrow keys go on from there
    input.addEventListener("focus", () => {
      for (const other of this.cells) other.tabIndex = other === input ? 0 : -1;
      input.select();
    });
    input.addEventListener("input", (event) => {
      const typed = (event.data ?? input.value).slice(-1); // nothing where the digit was deleted
      if (/^[0-9.]?$/.test(typed)) this.puzzle[cell] = Number(typed) || 0;
      this.clear();
      this.remember();
      input.select();
    });
    const moves = { ArrowUp: -9, ArrowDown: 9, ArrowLeft: -1, ArrowRight: 1 };
    input.addEventListener("keydown", (event) => {
      const move = moves[event.key];
      if (!move) return;
      event.preventDefault();
      const isBeside = Math.abs(move) === 9 || Math.floor((cell + move) / 9) === Math.floor(cell / 9);
      if (isBeside) this.cells[cell + move]?.focus();
    });
    return input;
  }

  read(address) {
    super.read(address);
    this.form.attempts.value = within(address, "attempts", 1, 32, 8);
    this.puzzle =
      fromText(address.get("puzzle") ?? "") ?? newPuzzle(manifest.puzzles, this.form.clues.valueAsNumber);
    this.clear();
  }

  address() {
    return { puzzle: asText(this.puzzle), attempts: this.form.attempts.value };
  }

  /** Show the puzzle alone. */
  clear() {
    this.stop();
    this.drafts = [];
    this.player.hidden = true;
    this.figures.textContent = "";
    this.puzzle.forEach((digit, cell) => this.fillCell(cell, digit, digit ? "given" : ""));
  }

  fillCell(cell, digit, kind) {
    const input = this.cells[cell];
    input.value = digit || "";
    input.className = kind;
    const said = { given: "a clue", wrong: "in conflict" }[kind];
    const place = `row ${Math.floor(cell / 9) + 1}, column ${(cell % 9) + 1}`;
    input.setAttribute("aria-label", said ? `${place}, ${said}` : place);
  }

  ask() {
    const { first } = conflicts(this.puzzle);
    if (first) throw new Refusal(`No solution is possible: ${first}.`);
    if (this.puzzle.every((digit) => digit)) throw new Refusal("There is no empty cell to fill in.");
    const seed = Number(this.form.seed.value);
    const seeds = Array.from({ length: Number(this.form.attempts.value) }, (_, i) => seed + i);
    // After one step the other evaluations are refinements, which settle the surest cells first.
    const evaluations = { steps: 1, refinements: this.evaluations - 1 };
    return { ids: this.puzzle, given: this.puzzle.map((digit) => digit > 0), seeds, ...evaluations };
  }

  outcome() {
    const right = this.drafts.at(-1).map((grid) => isValid(Array.from(grid)));
    this.shown = Math.max(right.indexOf(true), 0);
    const count = right.filter(Boolean).length;
    return `${count || "None"} of ${counted(right.length, "attempt")} right, number ${this.shown + 1} is shown`;
  }

  spoken() {
    const grid = Array.from(this.drafts.at(-1)[this.shown]);
    return `${Array.from({ length: 9 }, (_, row) => grid.slice(9 * row, 9 * row + 9).join(" ")).join("; ")}.`;
  }

  display(draft) {
    const grid = Array.from(this.drafts[draft][this.shown]);
    const before = this.drafts[draft - 1]?.[this.shown];
    const wrong = draft === this.drafts.length - 1 ? conflicts(grid).cells : new Set();
    grid.forEach((digit, cell) => {
      const changed = before && before[cell] !== digit ? "changed" : "";
      this.fillCell(cell, digit, this.asked.given[cell] ? "given" : wrong.has(cell) ? "wrong" : changed);
    });
  }
}

/** The numbers beside the sliders, for the eye: who hears the page is told them by the sliders. */
function showValues() {
  for (const shown of document.querySelectorAll("[data-of]")) shown.textContent = element(shown.dataset.of).value;
}

function fail(error) {
  element("loading").hidden = true;
  element("error").hidden = false;
  element("error").textContent = error.message;
}

let manifest;
const coming = new Map(); // of each task whose model is on its way: the bytes that have come, and all

/** How far the models are that are on their way: the bar goes with the last of them. */
function showComing() {
  const [done, all] = [...coming.values()].reduce((sum, of) => [sum[0] + of[0], sum[1] + of[1]], [0, 0]);
  Object.assign(element("progress"), { max: all || 1, value: done });
  element("loading").hidden = !coming.size;
}

/** The model of a task, whose way here the page shows. */
async function load(task) {
  coming.set(task, [0, 0]);
  showComing();
  try {
    return await loadModel(manifest, task, (...bytes) => {
      if (coming.has(task)) coming.set(task, bytes); // not after an error
      showComing();
    });
  } finally {
    coming.delete(task);
    showComing();
  }
}

/** Show the task that the address names, and do it. */
function open() {
  const address = new URLSearchParams(location.hash.slice(1));
  const current = desks.find((desk) => desk.name === address.get("task")) ?? desks[0];
  for (const desk of desks) {
    desk.stop();
    desk.form.hidden = desk !== current;
    const link = element(`to-${desk.name}`);
    if (desk === current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  current.read(address);
  return current.run();
}

element("starting").hidden = true;
let desks = [];
try {
  manifest = await loadManifest();
  desks = [new TextDesk(), new SudokuDesk()];
  window.addEventListener("hashchange", open);
  document.addEventListener("input", showValues);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.target !== document.body) return;
    const { form, button } = desks.find((desk) => !desk.form.hidden);
    form.requestSubmit(button);
  });
  await open();
} catch (error) {
  fail(error);
}
