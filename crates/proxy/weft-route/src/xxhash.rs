//! XXH64 with seed 0 (<https://xxhash.com>, specification 0.1.1): the hash by which consistent balancing places keys. Its
//! value decides which endpoint a key lands on, so it must be this function and no other.

const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;

/// XXH64 of `data`.
pub fn xxhash64(data: &[u8]) -> u64 {
    xxhash64_seeded(data, 0)
}

/// XXH64 of `data` with a seed.
pub fn xxhash64_seeded(data: &[u8], seed: u64) -> u64 {
    let (stripes, rest) = data.as_chunks::<32>();
    let mut hash = if stripes.is_empty() { seed.wrapping_add(P5) } else { long(stripes, seed) };
    hash = hash.wrapping_add(data.len() as u64);
    finish(hash, rest)
}

fn long(stripes: &[[u8; 32]], seed: u64) -> u64 {
    let mut acc = [seed.wrapping_add(P1).wrapping_add(P2), seed.wrapping_add(P2), seed, seed.wrapping_sub(P1)];
    for stripe in stripes {
        let (lanes, _) = stripe.as_chunks::<8>();
        for (a, lane) in acc.iter_mut().zip(lanes) {
            *a = round(*a, u64::from_le_bytes(*lane));
        }
    }
    let [a, b, c, d] = acc;
    let mut hash =
        a.rotate_left(1).wrapping_add(b.rotate_left(7)).wrapping_add(c.rotate_left(12)).wrapping_add(d.rotate_left(18));
    for a in acc {
        hash = (hash ^ round(0, a)).wrapping_mul(P1).wrapping_add(P4);
    }
    hash
}

fn finish(mut hash: u64, rest: &[u8]) -> u64 {
    let (eights, rest) = rest.as_chunks::<8>();
    for lane in eights {
        hash = (hash ^ round(0, u64::from_le_bytes(*lane))).rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
    }
    let (fours, bytes) = rest.as_chunks::<4>();
    for lane in fours {
        let value = u64::from(u32::from_le_bytes(*lane)).wrapping_mul(P1);
        hash = (hash ^ value).rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
    }
    for byte in bytes {
        hash = (hash ^ u64::from(*byte).wrapping_mul(P5)).rotate_left(11).wrapping_mul(P1);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(P2);
    hash ^= hash >> 29;
    hash = hash.wrapping_mul(P3);
    hash ^ (hash >> 32)
}

fn round(acc: u64, lane: u64) -> u64 {
    acc.wrapping_add(lane.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_values() {
        // Values of the reference implementation.
        for (text, want) in [
            ("", 0xef46_db37_51d8_e999_u64),
            ("a", 0xd24e_c4f1_a98c_6e5b),
            ("abc", 0x44bc_2cf5_ad77_0999),
            ("The quick brown fox jumps over the lazy dog", 0x0b24_2d36_1fda_71bc),
        ] {
            assert_eq!(xxhash64(text.as_bytes()), want, "{text}");
        }
    }
}
