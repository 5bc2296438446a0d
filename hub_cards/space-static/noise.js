// The noise that `model.generate` starts from: the numbers of torch's generator on a CPU, from the same seed.

/** The Mersenne Twister (MT19937), as torch seeds it: a function that gives the next 32 bits. */
export function mersenneTwister(seed) {
  const state = new Uint32Array(624);
  state[0] = seed; // the low 32 bits of it
  for (let i = 1; i < 624; i++) {
    const before = state[i - 1] ^ (state[i - 1] >>> 30);
    state[i] = Math.imul(before, 1812433253) + i;
  }
  let place = 624;
  function refill() {
    for (let i = 0; i < 624; i++) {
      const bits = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (bits >>> 1) ^ (bits & 1 ? 0x9908b0df : 0);
    }
    place = 0;
  }
  return () => {
    if (place === 624) refill();
    let bits = state[place++];
    bits ^= bits >>> 11;
    bits ^= (bits << 7) & 0x9d2c5680;
    bits ^= (bits << 15) & 0xefc60000;
    return (bits ^ (bits >>> 18)) >>> 0;
  };
}

/**
 * `torch.empty(count).normal_(generator=torch.Generator().manual_seed(seed))`, for a count of 16 or more.
 *
 * Torch fills a tensor with uniform numbers of 24 bits, and turns them into normal ones by the method of Box and
 * Muller, 16 at a time: the first 8 give the radius, the last 8 the angle. What is left over at the end is not a block
 * of its own: the last 16 numbers are drawn anew.
 */
export function normal(seed, count) {
  const next = mersenneTwister(seed);
  const uniform = () => (next() & 0xffffff) / 0x1000000;
  const drawn = Float32Array.from({ length: count }, uniform);
  for (let start = 0; start + 16 <= count; start += 16) boxMuller(drawn.subarray(start, start + 16));
  if (count % 16) {
    const tail = drawn.subarray(count - 16);
    tail.set(Array.from({ length: 16 }, uniform));
    boxMuller(tail);
  }
  return drawn;
}

function boxMuller(block) {
  for (let i = 0; i < 8; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - block[i]));
    const angle = 2 * Math.PI * block[i + 8];
    block[i] = radius * Math.cos(angle);
    block[i + 8] = radius * Math.sin(angle);
  }
}

/**
 * White noise of several sequences, one seed each: (seeds, length, width), row by row, as `white_noise` of the model's
 * code draws it. `longest` positions are drawn of each and the first `length` kept, so that a longer text begins with
 * the noise of a shorter one. With `extra` each position draws one number more, which is left out.
 */
export function whiteNoise(seeds, length, width, longest, extra = false) {
  const noise = new Float32Array(seeds.length * length * width);
  const pitch = width + Number(extra);
  seeds.forEach((seed, row) => {
    const drawn = normal(seed, longest * pitch);
    for (let place = 0; place < length; place++) {
      noise.set(drawn.subarray(place * pitch, place * pitch + width), (row * length + place) * width);
    }
  });
  return noise;
}

const WORD = 2n ** 64n;

/**
 * The seed of a step's noise: in step 0 the seed of the sequence itself, in a later one the low 32 bits of a hash of both
 * (SplitMix64), which are all that `normal` reads.
 */
export function stepSeed(seed, step) {
  if (step === 0) return seed;
  return Number(mix((mix(BigInt(seed)) + BigInt(step) * 0x9e3779b97f4a7c15n) % WORD) & 0xffffffffn);
}

function mix(number) {
  number = ((number ^ (number >> 30n)) * 0xbf58476d1ce4e5b9n) % WORD;
  number = ((number ^ (number >> 27n)) * 0x94d049bb133111ebn) % WORD;
  return number ^ (number >> 31n);
}
