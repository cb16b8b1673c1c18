use super::*;

fn picture() -> Picture {
    let node = |name: &str, group| PictureNode {
        name: name.to_owned(),
        detail: String::new(),
        shape: Shape::Workload,
        group,
        more: vec![format!("all of {name}")],
    };
    let edge = |from, to, way, refused| PictureEdge {
        from,
        to,
        way,
        refused,
        weight: 1,
        label: "a<b> & \"c\"".to_owned(),
        more: vec!["x".to_owned(), "</title>".to_owned()],
    };
    Picture {
        summary: "1 connection".to_owned(),
        notices: vec!["some are left out".to_owned()],
        groups: vec!["</style><script>alert(1)</script>".to_owned()],
        nodes: vec![node("web\u{7}\u{ffff}'", Some(0)), node(&"long".repeat(30), None)],
        edges: vec![
            edge(0, 1, Way::Direct, false),
            edge(1, 0, Way::Tunnel, false),
            edge(1, 1, Way::Passthrough, true),
        ],
    }
}

/// The names of the elements, each closed in its order; text must have no bare `<` or `&`.
fn elements(svg: &str) -> Vec<String> {
    let (mut open, mut all) = (Vec::new(), Vec::new());
    let mut parts = svg.split('<');
    assert_eq!(parts.next(), Some(""));
    for part in parts {
        let (tag, text) = part.split_once('>').unwrap_or_else(|| panic!("a bare < before {part:?}"));
        let name = tag.trim_end_matches('/').split(' ').next().unwrap().trim_start_matches('/').to_owned();
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) => assert_eq!(open.pop().as_ref(), Some(&name)),
            (false, true) => all.push(name),
            (false, false) => {
                all.push(name.clone());
                open.push(name);
            }
        }
        assert!(
            text.split('&')
                .skip(1)
                .all(|after| ["amp;", "lt;", "gt;", "quot;", "#39;"].iter().any(|e| after.starts_with(e))),
            "{text:?}"
        );
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }
    assert!(open.is_empty(), "{open:?}");
    all
}

#[test]
fn what_comes_from_the_wire_stays_text() {
    let svg = write(&picture());
    let known = ["svg", "title", "style", "rect", "text", "g", "path"];
    assert!(elements(&svg).iter().all(|name| known.contains(&name.as_str())));
    assert!(svg.contains("&lt;/style&gt;&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(svg.contains("web\u{fffd}\u{fffd}&#39;"));
    assert!(
        !svg.contains("http") || svg.matches("http").count() == 1,
        "nothing from elsewhere, but the namespace of SVG"
    );
}

#[test]
fn ways_and_refusals_differ_without_colour() {
    let svg = write(&picture());
    // The picture's and the legend's.
    for (class, count) in [
        ("edge direct\"", 2),
        ("edge tunnel\"", 2),
        ("edge passthrough refused", 1),
        ("edge direct refused", 1),
    ] {
        assert_eq!(svg.matches(&format!("<g class=\"{class}")).count(), count, "{class}");
    }
    assert_eq!(svg.matches("class=\"hollow\"").count(), 2, "a tunnel is a double line");
    assert_eq!(svg.matches("class=\"cross\"").count(), 2, "what is refused has a cross and no head");
    assert_eq!(svg.matches("class=\"head\"").count(), 2 + 3);
    assert!(svg.contains("prefers-color-scheme:dark"));
}

#[test]
fn long_names_are_shortened_and_whole_in_the_tooltip() {
    let svg = write(&picture());
    assert!(svg.contains(">longlonglonglong…onglonglonglong<"), "{svg}");
    assert!(svg.contains(&format!("<title>all of {}</title>", "long".repeat(30))));
}

#[test]
fn an_empty_picture_is_one_too() {
    let svg = write(&Picture { summary: "no flows".to_owned(), ..Picture::default() });
    assert!(elements(&svg).contains(&"svg".to_owned()) && svg.contains(">no flows<"));
}
