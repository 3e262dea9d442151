//! Frames of a camera as tensors: rows of bytes in, elements 0 to 255 out. No bytes make it panic.

use crate::settings::source::{Colour, Layout, Pixels};

/// Size of a frame and its two forms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Picture {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: Pixels,
    pub(super) colour: Colour,
    pub(super) layout: Layout,
}

impl Picture {
    /// A frame as elements, `[channels, height, width]` or `[height, width, channels]`.
    pub(super) fn tensor(&self, frame: &[u8]) -> Result<Vec<f32>, String> {
        let count = self.width * self.height;
        let bytes = match self.pixels {
            Pixels::Grey => count,
            Pixels::Yuyv => 2 * count,
        };
        if frame.len() != bytes {
            return Err(format!("a frame has {} bytes, expected {bytes}", frame.len()));
        }
        match (self.pixels, self.colour) {
            (Pixels::Grey, Colour::Grey) => Ok(frame.iter().map(|grey| f32::from(*grey)).collect()),
            // The brightness is every other byte.
            (Pixels::Yuyv, Colour::Grey) => {
                Ok(frame.iter().step_by(2).map(|grey| f32::from(*grey)).collect())
            }
            (Pixels::Grey, Colour::Rgb) => Err("a grey camera has no colours".to_owned()),
            (Pixels::Yuyv, Colour::Rgb) => Ok(self.coloured(frame)),
        }
    }

    fn coloured(&self, frame: &[u8]) -> Vec<f32> {
        let pairs = frame.as_chunks::<4>().0;
        let pixels = pairs.iter().flat_map(|&[y0, u, y1, v]| [rgb(y0, u, v), rgb(y1, u, v)]);
        match self.layout {
            Layout::ChannelsLast => pixels.flatten().collect(),
            Layout::ChannelsFirst => {
                let channel =
                    |channel: usize| pixels.clone().flat_map(move |pixel| pixel.get(channel).copied());
                (0..3).flat_map(channel).collect()
            }
        }
    }
}

/// Y'CbCr of ITU-R BT.601 in its limited range (Y' 16 to 235, Cb and Cr 16 to 240), which is what V4L2 cameras give
/// unless they say otherwise (Linux media documentation, "Colorspaces"), to R'G'B' 0 to 255.
fn rgb(y: u8, cb: u8, cr: u8) -> [f32; 3] {
    let y = 255.0 / 219.0 * (f32::from(y) - 16.0);
    let (cb, cr) = (255.0 / 224.0 * (f32::from(cb) - 128.0), 255.0 / 224.0 * (f32::from(cr) - 128.0));
    // Kr = 0.299, Kb = 0.114.
    let (red, green, blue) = (y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb);
    [red, green, blue].map(|value| value.round().clamp(0.0, 255.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(pixels: Pixels, colour: Colour, layout: Layout) -> Picture {
        Picture { width: 2, height: 1, pixels, colour, layout }
    }

    #[test]
    fn colours_are_those_of_bt_601() {
        // 100 % colour bars in 8 bits: white, black, red, green, blue.
        for (ycbcr, expected) in [
            ([235, 128, 128], [255.0, 255.0, 255.0]),
            ([16, 128, 128], [0.0, 0.0, 0.0]),
            ([81, 90, 240], [255.0, 0.0, 0.0]),
            ([145, 54, 34], [0.0, 255.0, 0.0]),
            ([41, 240, 110], [0.0, 0.0, 255.0]),
        ] {
            let [y, cb, cr] = ycbcr;
            for (found, expected) in rgb(y, cb, cr).into_iter().zip(expected) {
                assert!((found - expected).abs() <= 1.0, "{ycbcr:?}: {found} {expected}");
            }
        }
    }

    #[test]
    fn pictures_have_the_layout_asked_for() {
        let red_and_black = [81, 109, 16, 184];
        let first = picture(Pixels::Yuyv, Colour::Rgb, Layout::ChannelsFirst).tensor(&red_and_black).unwrap();
        let last = picture(Pixels::Yuyv, Colour::Rgb, Layout::ChannelsLast).tensor(&red_and_black).unwrap();
        assert_eq!(last, [first[0], first[2], first[4], first[1], first[3], first[5]]);
        let grey = picture(Pixels::Yuyv, Colour::Grey, Layout::ChannelsFirst).tensor(&red_and_black).unwrap();
        assert_eq!(grey, [81.0, 16.0]);
        let grey = picture(Pixels::Grey, Colour::Grey, Layout::ChannelsFirst);
        assert_eq!(grey.tensor(&[7, 255]).unwrap(), [7.0, 255.0]);
        assert!(grey.tensor(&[7]).unwrap_err().contains("expected 2"));
        assert!(picture(Pixels::Grey, Colour::Rgb, Layout::ChannelsFirst).tensor(&[7, 8]).is_err());
    }
}
