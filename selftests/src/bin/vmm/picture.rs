// SPDX-License-Identifier: GPL-2.0-only

//! A picture of a guest's screen.

use std::collections::HashSet;

/// Its size and its pixels, each three bytes.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Picture {
    /// From a file of the format PPM: a line `P6`, one with width and height, one with the largest
    /// value, the pixels.
    pub(crate) fn new(file: &[u8]) -> Result<Self, String> {
        let mut parts = file.splitn(4, |byte| *byte == b'\n');
        let mut line = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
        let (magic, size, most) = (line(), line(), line());
        let pixels = parts.next().unwrap_or_default().to_vec();
        let size: Vec<usize> = size
            .split(' ')
            .filter_map(|word| word.parse().ok())
            .collect();
        match (magic.as_str(), most.as_str(), &size[..]) {
            ("P6", "255", &[width, height]) if pixels.len() == 3 * width * height => Ok(Self {
                width,
                height,
                pixels,
            }),
            _ => Err(format!(
                "no picture: {magic}, {size:?}, {most}, {} bytes",
                pixels.len()
            )),
        }
    }

    /// Width and height.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    fn pixels(&self) -> impl Iterator<Item = &[u8]> {
        self.pixels.chunks_exact(3)
    }

    /// How many colours it has.
    pub(crate) fn colours(&self) -> usize {
        self.pixels().collect::<HashSet<_>>().len()
    }

    /// How many in a hundred of its pixels have this colour.
    pub(crate) fn share(&self, colour: [u8; 3]) -> usize {
        let count = self.pixels().filter(|pixel| **pixel == colour).count();
        count * 100 / (self.width * self.height).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_counted() {
        let picture = Picture::new(b"P6\n3 1\n255\nabc\nbcabc").expect("a picture");
        assert_eq!((picture.size(), picture.colours()), ((3, 1), 2));
        assert_eq!((picture.share(*b"abc"), picture.share(*b"xyz")), (66, 0));
    }

    #[test]
    fn what_is_no_picture() {
        for file in [
            &b""[..],
            b"P5\n1 1\n255\nabc",
            b"P6\n1 1\n255\nab",
            b"P6\n1\n255\nabc",
        ] {
            assert!(Picture::new(file).is_err());
        }
    }
}
