//! How an input becomes another.
//!
//! Blind changes of bytes seldom get past a parser, so half of the changes know what inputs are made of: words that
//! the target looks for, numbers at the edges of their types, and pieces between the delimiters of JSON and lines.

use crate::Random;

/// Longest input that is made, in bytes: a little over the longest reply that the limiter reads.
const MAX_BYTES: usize = 6000;

/// Numbers that types and ranges end at.
const EDGES: [&str; 16] = [
    "0",
    "1",
    "-1",
    "127",
    "128",
    "255",
    "256",
    "4095",
    "4096",
    "4097",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
];

/// A new input, made of `parent` and perhaps of `other`.
pub fn mutated(parent: &[u8], other: &[u8], words: &[&str], random: &mut Random) -> Vec<u8> {
    let mut input = parent.to_vec();
    let most = random.choose(&[1, 2, 4, 8]);
    for _ in 0..1 + random.below(most) {
        change(&mut input, other, words, random);
    }
    input.truncate(MAX_BYTES);
    input
}

fn change(input: &mut Vec<u8>, other: &[u8], words: &[&str], random: &mut Random) {
    let at = place(input, random);
    match random.below(14) {
        0 => flip_bit(input, at, random),
        1 => overwrite(input, at, &[random.next() as u8]),
        2 => insert(input, at, &[random.next() as u8]),
        3 => insert(input, at, random.choose(words).as_bytes()),
        4 => overwrite(input, at, random.choose(words).as_bytes()),
        5 => replace_number(input, at, random),
        6 => drop(input.drain(range(input.len(), random))),
        7 => repeat(input, at, random),
        8 => {
            let range = range(other.len(), random);
            insert(input, at, &other[range]);
        }
        9 => {
            // The start of one and the end of the other.
            let end = place(other, random);
            input.truncate(at);
            input.extend(&other[end..]);
        }
        10 => input.truncate(at),
        11 => replace_token(input, random.choose(words).as_bytes(), random),
        12 => swap_tokens(input, random),
        _ => drop_token(input, random),
    }
}

/// From the start to just after the end.
fn place(input: &[u8], random: &mut Random) -> usize {
    random.below(input.len() as u64 + 1) as usize
}

/// A range, short ones as likely as long ones.
fn range(length: usize, random: &mut Random) -> std::ops::Range<usize> {
    if length == 0 {
        return 0..0;
    }
    let size = random.of_any_size(length as u64) as usize;
    let start = random.below((length - size) as u64 + 1) as usize;
    start..start + size
}

fn flip_bit(input: &mut [u8], at: usize, random: &mut Random) {
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << random.below(8);
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    drop(input.splice(at..at, bytes.iter().copied()));
}

fn overwrite(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = (at + bytes.len()).min(input.len());
    drop(input.splice(at..end, bytes.iter().copied()));
}

fn repeat(input: &mut Vec<u8>, at: usize, random: &mut Random) {
    let piece = input[range(input.len(), random)].to_vec();
    let times = random.choose(&[1, 2, 8, 64]);
    if piece.len() * times <= MAX_BYTES {
        insert(input, at, &piece.repeat(times));
    }
}

/// The next number after `at` becomes one at the edge of something, or another one near.
fn replace_number(input: &mut Vec<u8>, at: usize, random: &mut Random) {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let Some(start) = input[at..].iter().position(is_digit).map(|from| at + from) else { return };
    let length = input[start..].iter().take_while(|byte| is_digit(byte)).count();
    let number: Option<u64> =
        std::str::from_utf8(&input[start..start + length]).ok().and_then(|text| text.parse().ok());
    let new = match number {
        Some(number) if random.one_in(2) => {
            let near = [number.wrapping_add(1), number.wrapping_sub(1), number.wrapping_mul(2), number / 2];
            random.choose(&near).to_string()
        }
        _ => random.choose(&EDGES).to_owned(),
    };
    drop(input.splice(start..start + length, new.into_bytes()));
}

/// What is between two delimiters, strings as a whole with their quotes.
fn tokens(input: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut tokens = Vec::new();
    let (mut start, mut is_quoted) = (0, false);
    for (at, byte) in input.iter().enumerate() {
        is_quoted ^= *byte == b'"';
        if !is_quoted && b"{}[],: \r\n".contains(byte) {
            if at > start {
                tokens.push(start..at);
            }
            start = at + 1;
        }
    }
    if start < input.len() {
        tokens.push(start..input.len());
    }
    tokens
}

fn token(input: &[u8], random: &mut Random) -> Option<std::ops::Range<usize>> {
    let tokens = tokens(input);
    let index = random.below(tokens.len().max(1) as u64) as usize;
    tokens.get(index).cloned()
}

fn replace_token(input: &mut Vec<u8>, word: &[u8], random: &mut Random) {
    let Some(range) = token(input, random) else { return };
    let is_text = input[range.start] == b'"';
    let word = if is_text { [b"\"", word, b"\""].concat() } else { word.to_vec() };
    drop(input.splice(range, word));
}

fn swap_tokens(input: &mut Vec<u8>, random: &mut Random) {
    let (Some(one), Some(other)) = (token(input, random), token(input, random)) else { return };
    let (first, second) = if one.start < other.start { (one, other) } else { (other, one) };
    if first.end <= second.start {
        let later = input[first.clone()].to_vec();
        let moved: Vec<u8> = input.splice(second, later).collect();
        drop(input.splice(first, moved));
    }
}

fn drop_token(input: &mut Vec<u8>, random: &mut Random) {
    if let Some(range) = token(input, random) {
        // With the delimiter that follows it.
        let end = (range.end + 1).min(input.len());
        drop(input.drain(range.start..end));
    }
}
