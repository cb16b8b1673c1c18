//! What is drawn, in whichever form: boxes in groups, arrows, words. Words come from the wire: who writes them out escapes them.

/// What a box stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A workload, or several.
    Workload,
    /// A service that a waypoint was asked for.
    Service,
    /// What is no workload.
    Outside,
}

/// How connections travelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Plain TCP inside the node.
    Direct,
    /// HBONE.
    Tunnel,
    /// As if there were no mesh.
    Passthrough,
}

/// A box.
#[derive(Clone, Debug)]
pub(super) struct PictureNode {
    pub(super) name: String,
    /// A second line, or empty.
    pub(super) detail: String,
    pub(super) shape: Shape,
    /// Its namespace's place in [`Picture::groups`].
    pub(super) group: Option<usize>,
    /// What more there is to know, a line each.
    pub(super) more: Vec<String>,
}

/// An arrow.
#[derive(Clone, Debug)]
pub(super) struct PictureEdge {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) way: Way,
    pub(super) refused: bool,
    /// Connections.
    pub(super) weight: u64,
    pub(super) label: String,
    pub(super) more: Vec<String>,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Picture {
    /// How much, and of when.
    pub(super) summary: String,
    /// What is missing, and other things to know; a line each.
    pub(super) notices: Vec<String>,
    pub(super) groups: Vec<String>,
    pub(super) nodes: Vec<PictureNode>,
    pub(super) edges: Vec<PictureEdge>,
}

/// At most `most` characters: what is too much is left out in the middle, for ends tell more.
pub(super) fn shorten(text: &str, most: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= most {
        return text.to_owned();
    }
    let head = most.saturating_sub(1).div_ceil(2);
    let tail = most.saturating_sub(1) - head;
    let (first, last) = (chars.iter().take(head), chars.iter().skip(chars.len() - tail));
    first.chain(['…'].iter()).chain(last).collect()
}
