//! The framing of Connect's server streams: one byte of flags, four of length, then JSON.

use bytes::{Buf as _, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::Value;

/// Longest frame that is believed. envd sends at most 32 KiB of output in one.
const FRAME_MAX: usize = 16 << 20;

const HEADER: usize = 5;
const COMPRESSED: u8 = 0x01;
const END: u8 = 0x02;

/// One frame.
#[derive(Debug, PartialEq)]
pub(crate) enum Frame {
    /// A message's JSON.
    Message(Bytes),
    /// The stream's proper end, with an error or without. A stream that stops without one was cut.
    End(Option<StreamError>),
}

/// How a call ended that did not go well.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct StreamError {
    /// Connect's code, as `not_found`.
    #[serde(default)]
    pub code: String,
    /// For people.
    #[serde(default)]
    pub message: String,
}

/// Cuts a stream of bytes into frames, however it is chopped.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    buffer: BytesMut,
}

impl Frames {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `Err` when these bytes are no frames.
    pub fn next(&mut self) -> Result<Option<Frame>, String> {
        let Some((header, _)) = self.buffer.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [flags, length @ ..] = *header;
        let length = u32::from_be_bytes(length) as usize;
        if length > FRAME_MAX || flags & COMPRESSED != 0 {
            return Err(format!("a frame with flags {flags} and {length} bytes is none of ours"));
        }
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let payload = self.buffer.split_to(length).freeze();
        if flags & END == 0 {
            return Ok(Some(Frame::Message(payload)));
        }
        let end: Value = serde_json::from_slice(&payload).map_err(|error| format!("the stream's end can't be read: {error}"))?;
        let error = end.get("error").filter(|error| !error.is_null());
        Ok(Some(Frame::End(error.map(|error| {
            StreamError::deserialize(error).unwrap_or_else(|_| StreamError { code: "unknown".to_owned(), message: error.to_string() })
        }))))
    }
}

/// A message as the one frame of a request.
pub(crate) fn frame(message: &Value) -> Vec<u8> {
    let payload = message.to_string();
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.push(0);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(payload.as_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    proptest! {
        #[test]
        fn frames_are_the_same_however_the_stream_is_chopped(texts in prop::collection::vec(".{0,40}", 0..6), cuts in prop::collection::vec(1usize..30, 1..40)) {
            let mut bytes: Vec<u8> = texts.iter().flat_map(|text| frame(&json!({ "t": text }))).collect();
            bytes.extend([END, 0, 0, 0, 2, b'{', b'}']);
            let (mut frames, mut got, mut rest, mut cuts) = (Frames::default(), Vec::new(), bytes.as_slice(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (head, tail) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                frames.push(head);
                rest = tail;
                while let Some(frame) = frames.next().unwrap() {
                    got.push(frame);
                }
            }
            let mut expected: Vec<Frame> = texts.iter().map(|text| Frame::Message(json!({ "t": text }).to_string().into())).collect();
            expected.push(Frame::End(None));
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn bytes_that_are_no_frames_are_refused_rather_than_waited_for() {
        let mut frames = Frames::default();
        frames.push(b"<html><body>502</body></html>");
        assert!(frames.next().is_err());
    }
}
