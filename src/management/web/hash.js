// Password hashing in the browser. The broker receives the hash, not the password.

const ROUNDS = 20000;
const ENCODER = new TextEncoder();

// The constants of SHA-256: fractional bits of the square and cube roots of the first primes.
const primes = [];
for (let number = 2; primes.length < 64; number += 1) {
  if (primes.every((prime) => number % prime)) primes.push(number);
}
const bitsOf = (root) => ((root % 1) * 2 ** 32) | 0;
const HASH_START = primes.slice(0, 8).map((prime) => bitsOf(Math.sqrt(prime)));
const HASH_KEYS = primes.map((prime) => bitsOf(Math.cbrt(prime)));
const schedule = new Int32Array(64);
const turned = (word, by) => (word >>> by) | (word << (32 - by));

/** One step of SHA-256: the state after sixteen more words. */
function sha256Step(state, words) {
  schedule.set(words);
  for (let at = 16; at < 64; at += 1) {
    const [early, late] = [schedule[at - 15], schedule[at - 2]];
    schedule[at] = schedule[at - 16] + schedule[at - 7]
      + (turned(early, 7) ^ turned(early, 18) ^ (early >>> 3)) + (turned(late, 17) ^ turned(late, 19) ^ (late >>> 10));
  }
  let [a, b, c, d, e, f, g, last] = state;
  for (let at = 0; at < 64; at += 1) {
    const one = (last + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + HASH_KEYS[at]
      + schedule[at]) | 0;
    const two = ((turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    [last, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + two) | 0];
  }
  return [a, b, c, d, e, f, g, last].map((word, at) => (word + state[at]) | 0);
}

/** Bytes as blocks of sixteen words with SHA-256's padding, for a message that begins with `before` other bytes. */
function blocksOf(raw, before = 0) {
  const view = new DataView(new ArrayBuffer(Math.ceil((raw.length + 9) / 64) * 64));
  raw.forEach((byte, at) => view.setUint8(at, byte));
  view.setUint8(raw.length, 0x80);
  view.setUint32(view.byteLength - 4, (before + raw.length) * 8);
  return Array.from({ length: view.byteLength / 64 }, (_, block) => Array.from({ length: 16 },
    (__, word) => view.getInt32(block * 64 + word * 4)));
}

const octetsOf = (words) => words.flatMap((word) => [word >>> 24, (word >>> 16) & 255, (word >>> 8) & 255, word & 255]);

/** PBKDF2 with HMAC-SHA-256, of one block. Browsers offer it only on encrypted pages. */
export function derived(password, salt, rounds) {
  const long = ENCODER.encode(password);
  const key = long.length > 64 ? octetsOf(blocksOf(long).reduce(sha256Step, HASH_START)) : [...long];
  const padded = (mask) => {
    const bytesIn = Array.from({ length: 64 }, (_, at) => (key[at] ?? 0) ^ mask);
    return sha256Step(HASH_START, blocksOf(bytesIn)[0]);
  };
  const [inner, outer] = [padded(0x36), padded(0x5c)];
  const tail = (words) => [...words, 1 << 31, 0, 0, 0, 0, 0, 0, 96 * 8];
  let now = sha256Step(outer, tail(blocksOf([...salt, 0, 0, 0, 1], 64).reduce(sha256Step, inner)));
  const all = [...now];
  for (let round = 1; round < rounds; round += 1) {
    now = sha256Step(outer, tail(sha256Step(inner, tail(now))));
    now.forEach((word, at) => { all[at] ^= word; });
  }
  return octetsOf(all);
}

/** The hash of a password that the broker stores, so that the password itself is not sent. */
export function hashed(password) {
  const salt = crypto.getRandomValues(new Uint8Array(16));
  const all = [...octetsOf([ROUNDS]), ...salt, ...derived(password, salt, ROUNDS)];
  return { password_hash: btoa(String.fromCharCode(...all)),
    hashing_algorithm: 'leveret_password_hashing_pbkdf2_sha256' };
}
