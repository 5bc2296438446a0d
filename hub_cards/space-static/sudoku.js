// The rules of Sudoku, which the page knows and the network has never been told. A grid is 81 digits, 0 where empty.

const NINE = [0, 1, 2, 3, 4, 5, 6, 7, 8];
const UNITS = NINE.flatMap((n) => [
  { name: `row ${n + 1}`, cells: NINE.map((i) => 9 * n + i) },
  { name: `column ${n + 1}`, cells: NINE.map((i) => 9 * i + n) },
  {
    name: `box ${n + 1}`,
    cells: NINE.map((i) => 27 * Math.floor(n / 3) + 3 * (n % 3) + 9 * Math.floor(i / 3) + (i % 3)),
  },
]);

/** The cells that have the same digit as another one of their row, column or box; and the first such unit, in words. */
export function conflicts(grid) {
  const cells = new Set();
  let first = null;
  for (const unit of UNITS) {
    for (const cell of unit.cells) {
      if (grid[cell] && unit.cells.some((other) => other !== cell && grid[other] === grid[cell])) {
        cells.add(cell);
        first ??= `${unit.name} has ${grid[cell]} twice`;
      }
    }
  }
  return { cells, first };
}

/** Whether a grid is full and nothing in it conflicts. */
export function isValid(grid) {
  return grid.every((digit) => digit > 0) && conflicts(grid).cells.size === 0;
}

/**
 * One of the puzzles (strings of a puzzle and its solution, 81 characters each), with cells filled in until it has so
 * many clues. `random` gives numbers in [0, 1).
 */
export function newPuzzle(puzzles, clues, random = Math.random) {
  const [puzzle, solution] = puzzles[Math.floor(random() * puzzles.length)].split(" ").map(fromText);
  const blanks = NINE.flatMap((n) => NINE.map((i) => 9 * n + i)).filter((cell) => puzzle[cell] === 0);
  while (81 - blanks.length < clues) {
    const [cell] = blanks.splice(Math.floor(random() * blanks.length), 1);
    puzzle[cell] = solution[cell];
  }
  return puzzle;
}

/** A puzzle as 81 characters, `.` where a cell is empty; and back, null of anything else. */
export const asText = (puzzle) => puzzle.map((digit) => digit || ".").join("");
export function fromText(text) {
  return /^[.0-9]{81}$/.test(text) ? Array.from(text, (character) => Number(character.replace(".", "0"))) : null;
}
