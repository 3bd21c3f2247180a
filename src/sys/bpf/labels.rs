//! Places in a program that is still being written, so that a jump can name where it goes before
//! that is there.

/// A place to jump to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// Where the labels of one program are.
#[derive(Debug, Default)]
pub(super) struct Labels(Vec<Option<usize>>);

impl Labels {
    pub(super) fn new_label(&mut self) -> Label {
        self.0.push(None);
        Label(self.0.len() - 1)
    }

    /// The next instruction, number `place`, is what the label names.
    pub(super) fn place(&mut self, label: Label, place: usize) {
        let was = self.0[label.0].replace(place);
        assert_eq!(was, None, "a label names one place");
    }

    /// How many instructions the one at `from` skips to get to the label.
    pub(super) fn skipped(&self, label: Label, from: usize) -> usize {
        let place = self.0[label.0].expect("every label is placed");
        place.checked_sub(from + 1).expect("jumps go forward")
    }
}
