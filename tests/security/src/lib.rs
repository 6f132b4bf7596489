//! A dice for tests that must fall the same way each time.

/// Pseudo-random numbers from a seed (xorshift64*).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Numbers from a seed; equal seeds give equal numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `n`, which is at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap_or(0) % n.max(1)
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of a list.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// Some of a list, at least one.
    pub fn some<'a>(&mut self, list: &[&'a str]) -> Vec<&'a str> {
        let mut out = vec![list[self.below(list.len())]];
        if self.once_in(2) {
            out.push(list[self.below(list.len())]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::Dice;

    #[test]
    fn equal_seeds_fall_equally_and_widely() {
        let roll = |seed| (0..1000).scan(Dice::new(seed), |dice, _| Some(dice.below(10))).collect::<Vec<_>>();
        assert_eq!(roll(7), roll(7));
        assert_ne!(roll(7), roll(8));
        assert!((0..10).all(|n| roll(7).iter().filter(|m| **m == n).count() > 50));
    }
}
