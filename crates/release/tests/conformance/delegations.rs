//! `test_updater_delegation_graphs.py`: 23 cases.

use serde_json::json;

use super::device::Device;
use super::repository::Repository;

/// A delegation: from, to, whether it is terminating, path patterns.
struct Edge(&'static str, &'static str, bool, &'static [&'static str]);

const ANY: &[&str] = &["*"];

fn edge(from: &'static str, to: &'static str) -> Edge {
    Edge(from, to, false, ANY)
}

/// Delegates along the edges and publishes all.
fn publish(repository: &mut Repository, edges: &[Edge], artifacts: &[(&str, &[u8], &str)]) {
    let mut changed = vec!["targets"];
    for Edge(from, to, terminating, paths) in edges {
        repository.delegate(from, to, json!({ "paths": paths, "terminating": terminating }));
        for role in [from, to] {
            if !changed.contains(role) {
                changed.push(role);
            }
        }
    }
    for (role, bytes, path) in artifacts {
        repository.add_artifact(role, bytes, path);
    }
    repository.publish(&changed);
    repository.publish(&["snapshot", "timestamp"]);
}

/// The delegated roles that a device asked for, in order.
fn visited(repository: &Repository) -> Vec<&str> {
    repository.requests[4..].iter().map(|(role, _)| role.as_str()).collect()
}

#[test]
fn test_graph_traversal() {
    let top = || [edge("targets", "A"), edge("targets", "B")];
    let with = |rest: Vec<Edge>| top().into_iter().chain(rest).collect::<Vec<_>>();
    let graphs: [(&str, Vec<Edge>, &[&str]); 12] = [
        ("basic-delegation", vec![edge("targets", "A")], &["A"]),
        ("single-level-delegations", with(vec![]), &["A", "B"]),
        ("two-level-delegations", with(vec![edge("B", "C")]), &["A", "B", "C"]),
        (
            "two-level-test-DFS-order-of-traversal",
            with(vec![edge("A", "C"), edge("A", "D")]),
            &["A", "C", "D", "B"],
        ),
        (
            "three-level-delegation-test-DFS-order-of-traversal",
            with(vec![edge("A", "C"), edge("C", "D")]),
            &["A", "C", "D", "B"],
        ),
        (
            "two-level-terminating-ignores-all-but-roles-descendants",
            with(vec![Edge("A", "C", true, ANY), edge("A", "D")]),
            &["A", "C"],
        ),
        (
            "three-level-terminating-ignores-all-but-roles-descendants",
            with(vec![Edge("A", "C", true, ANY), edge("C", "D")]),
            &["A", "C", "D"],
        ),
        (
            "two-level-ignores-all-branches-not-matching-paths",
            vec![Edge("targets", "A", false, &["*.py"]), edge("targets", "B"), edge("A", "C")],
            &["B"],
        ),
        (
            "three-level-ignores-all-branches-not-matching-paths",
            with(vec![Edge("A", "C", false, &["*.py"]), edge("C", "D")]),
            &["A", "B"],
        ),
        ("cyclic-graph", with(vec![edge("B", "C"), edge("C", "D"), edge("D", "B")]), &["A", "B", "C", "D"]),
        ("two-roles-delegating-to-a-third", with(vec![edge("B", "C"), edge("A", "C")]), &["A", "C", "B"]),
        (
            "two-roles-delegating-to-a-third-different-paths",
            with(vec![edge("B", "C"), Edge("A", "C", false, &["*.py"])]),
            &["A", "B", "C"],
        ),
    ];
    for (name, edges, expected) in graphs {
        let mut repository = Repository::new();
        let mut device = Device::new(&repository);
        publish(&mut repository, &edges, &[]);
        assert_eq!(device.download(&mut repository, &["missingpath"]), Err("tuf.unknown_target"), "{name}");
        assert_eq!(visited(&repository), expected, "{name}");
    }
}

#[test]
fn test_targetfile_search() {
    let tree = [
        Edge("targets", "A", false, &["*.doc", "*.md", "foo-?.tgz"]),
        Edge("targets", "B", false, &["releases/*/*"]),
        Edge("B", "C", false, &["releases/x/*"]),
        Edge("B", "D", false, &["releases/y/*.zip"]),
    ];
    let artifacts: [(&str, &[u8], &str); 8] = [
        ("targets", b"targetfile content", "targetfile"),
        ("A", b"README by A", "README.md"),
        ("A", b"nested README by A", "releases/README.md"),
        ("A", b"foo 1", "foo-1.tgz"),
        ("A", b"foo alpha", "foo-alpha.tgz"),
        ("C", b"x release by C", "releases/x/x_v1"),
        ("D", b"y release by D", "releases/y/y_v1.zip"),
        ("D", b"z release by D", "releases/z/z_v1.zip"),
    ];
    let cases: [(&str, &str, bool, &[&str]); 9] = [
        ("no delegations", "targetfile", true, &[]),
        ("targetpath matches wildcard", "README.md", true, &["A"]),
        ("targetpath with separators x", "releases/x/x_v1", true, &["B", "C"]),
        ("targetpath with separators y", "releases/y/y_v1.zip", true, &["B", "D"]),
        ("targetpath is not delegated by all roles in the chain", "releases/z/z_v1.zip", false, &["B"]),
        ("wildcard does not match path separator", "releases/README.md", false, &[]),
        ("targetpath matches question mark wildcard", "foo-1.tgz", true, &["A"]),
        ("targetpath does not match question mark wildcard", "foo-alpha.tgz", false, &[]),
        ("targetpath matching is case sensitive", "README.MD", false, &[]),
    ];
    for (name, path, found, expected) in cases {
        let mut repository = Repository::new();
        let mut device = Device::new(&repository);
        publish(&mut repository, &tree, &artifacts);
        assert_eq!(device.download(&mut repository, &[path]).is_ok(), found, "{name}");
        if found {
            assert_eq!(device.contents(), [repository.artifacts[path].bytes.as_slice()], "{name}");
        }
        assert_eq!(visited(&repository), expected, "{name}");
    }
}

#[test]
fn test_cached_role_is_verified_against_current_delegator() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.delegate("targets", "parent-a", json!({ "paths": ["team-a/*"] }));
    repository.delegate("targets", "parent-b", json!({ "paths": ["team-b/*"] }));
    repository.delegate("parent-a", "release", json!({ "paths": ["team-a/*"] }));
    // Signed by the key that A names alone.
    let other = repository.delegate("parent-b", "release", json!({ "paths": ["team-b/*"] }));
    repository.signers.get_mut("release").unwrap().retain(|key| key.public() != other.public());
    repository.add_artifact("release", b"trusted A", "team-a/trusted_root.json");
    repository.add_artifact("release", b"malicious B", "team-b/trusted_root.json");
    repository.publish(&["release", "parent-a", "parent-b", "targets", "snapshot", "timestamp"]);
    let both = ["team-a/trusted_root.json", "team-b/trusted_root.json"];
    assert_eq!(device.download(&mut repository, &both), Err("tuf.unknown_key"));
    assert_eq!(device.contents(), [b"trusted A"]);
}

#[test]
fn test_delegation_not_in_snapshot() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.delegate("targets", "delegated", json!({ "paths": ["delegatedpath/*"] }));
    repository.publish(&["delegated", "targets"]);
    repository.document("snapshot")["meta"].as_object_mut().unwrap().remove("delegated.json");
    repository.publish(&["snapshot", "timestamp"]);
    device.refresh(&mut repository).unwrap();
    repository.requests.clear();
    assert_eq!(device.download(&mut repository, &["delegatedpath/foo"]), Err("tuf.missing"));
    assert_eq!(device.version("delegated"), None);
    assert_eq!(repository.requests, [("root".to_owned(), Some(2)), ("timestamp".to_owned(), None)]);
}
