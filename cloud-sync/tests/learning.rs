//! The learning loop on real processes: service, operator's command line, trainer; and what a trainer
//! does with jobs it cannot do.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{CloudProcess, data_folder, eventually};
use farlight_cloud::learning::job::{CONTRACT, Folder, Job, TaskSpec};
use farlight_cloud::learning::plan::{self, Labelled};
use farlight_cloud::learning::recipe::TrainingRecipe;
use farlight_cloud::store::Store;
use farlight_onnx::{Dim, GraphBuilder};
use farlight_training::{Samples, Settings};
use serde_json::Value;

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/watch-gestures")
}

/// Runs `farlight` as an operator of the cloud in `data`.
fn farlight(data: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_farlight"))
        .args(args)
        .arg("--json")
        .env("FARLIGHT_PROFILE", data.join("operator.json"))
        .current_dir(data)
        .output()
        .unwrap()
}

fn ok(data: &Path, args: &[&str]) -> Value {
    let output = farlight(data, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(data: &Path, args: &[&str]) -> String {
    let output = farlight(data, args);
    assert!(!output.status.success(), "{args:?} went through");
    let body: Value = serde_json::from_slice(&output.stderr).unwrap();
    body["error"]["code"].as_str().unwrap().to_owned()
}

/// Labelled left-arm windows as devices would have sent them.
async fn label_cases(data: &Path, from: usize, to: usize) {
    let recipe = TrainingRecipe::read(&models().join("recipe.toml")).unwrap();
    let field = recipe.data.field.unwrap().read(&models()).unwrap();
    let store = Store::open(&format!("sqlite://{}", data.join("cloud.db").display())).await.unwrap();
    let mut write = store.write().await.unwrap();
    for at in from..to {
        // 7 and 679 have no common divisor: every window once, from everywhere.
        let pick = at * 7 % field.len();
        let bytes: Vec<u8> = field.x[pick].iter().flat_map(|value| value.to_le_bytes()).collect();
        sqlx::query(
            "INSERT INTO cases (id, device, epoch, seq, model, release, at, received, request_id, kind, \
             kept_permille, hardness_permille, class, score_permille, shape, encoding, tensor, label, \
             label_index, labelled, labelled_by) VALUES ($1, 'gw', 1, $2, 'watch-gestures', \
             'watch-gestures/1.0.0', 1, $2, 'r', 'margin', 500, 500, 0, 500, '[6,100]', 'f32', $3, 'x', $4, 1, 'me')",
        )
        .bind(format!("case-{at}"))
        .bind(at as i64)
        .bind(bytes)
        .bind(i64::from(field.y[pick]))
        .execute(write.connection())
        .await
        .unwrap();
    }
    write.commit().await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn labelled_cases_become_a_better_model_that_passes_the_gate() {
    let folder = data_folder();
    let data = folder.path();
    let cloud = CloudProcess::start(data, "127.0.0.1:0", "127.0.0.1:0");
    eventually("the operator's profile", async || data.join("operator.json").exists().then_some(())).await;
    let recipe = models().join("release.toml");
    let (recipe, model) = (recipe.to_str().unwrap(), models().join("model.onnx"));
    ok(data, &["keys", "generate", "keys"]);
    ok(data, &["repo", "init", "--keys", "keys"]);
    let model = model.to_str().unwrap();
    ok(
        data,
        &["release", "build", "--recipe", recipe, "--model", model, "--version", "1.0.0", "--out", "one"],
    );
    ok(data, &["release", "sign", "one", "--keys", "keys"]);
    ok(data, &["release", "publish", "one"]);

    let start = ["train", "start", "watch-gestures/1.0.0", "--dataset", "right"];
    assert_eq!(refused(data, &start), "training.unknown_dataset");
    ok(data, &["dataset", "import", "right", models().to_str().unwrap()]);
    assert_eq!(refused(data, &start), "training.too_few_labels");
    let unknown = ["train", "start", "watch-gestures/9.0.0", "--dataset", "right"];
    assert_eq!(refused(data, &unknown), "training.unknown_base");
    label_cases(data, 0, 150).await;
    let wrong = [&start[..], &["--set", "epochs=0"]].concat();
    assert_eq!(refused(data, &wrong), "training.settings");

    // A job without end is stopped, and its process with it.
    let long = [&start[..], &["--set", "epochs=10000", "--set", "patience=0"]].concat();
    let id = ok(data, &long)["id"].as_str().unwrap().to_owned();
    eventually("training", async || {
        let view = ok(data, &["train", "status", &id]);
        view["progress"]["epoch"].as_u64().filter(|epoch| *epoch >= 1)
    })
    .await;
    ok(data, &["train", "cancel", &id]);
    let view = eventually("the end", async || {
        let view = ok(data, &["train", "status", &id]);
        (view["state"] == "cancelled").then_some(view)
    })
    .await;
    assert!(view["detail"]["snapshot"].is_string());
    assert_eq!(refused(data, &["train", "fetch", &id, "--out", "no.onnx"]), "train.not_passed");

    // Evidence from 12 epochs: the test's time is the trainer's.
    let view = ok(data, &[&start[..], &["--wait", "--set", "epochs=12"]].concat());
    assert_eq!(view["state"], "passed", "{view:#}");
    let report = &view["detail"]["report"];
    let number = |path: &str| report.pointer(path).and_then(Value::as_f64).unwrap();
    assert!(number("/field/candidate") - number("/field/base") >= 0.30, "{report:#}");
    assert!(number("/old/candidate") >= number("/old/base") - 0.06, "{report:#}");
    let id = view["id"].as_str().unwrap();
    ok(data, &["train", "fetch", id, "--out", "two.onnx"]);
    let parent = "watch-gestures/1.0.0";
    let two =
        ["release", "build", "--recipe", recipe, "--model", "two.onnx", "--version", "1.1.0", "--out", "two"];
    ok(data, &[&two[..], &["--parent", parent, "--job", id]].concat());
    drop(cloud);
}

fn job(classes: usize, settings: Settings) -> Job {
    Job {
        contract: CONTRACT,
        job: "test".into(),
        device: "auto".into(),
        deadline_seconds: 60,
        task: TaskSpec {
            kind: "classification".into(),
            classes: (0..classes).map(|class| class.to_string()).collect(),
            input: "x".into(),
            shape: vec![2],
        },
        recipe: settings,
    }
}

fn write(folder: &Path, onnx: &[u8], settings: Settings) {
    let old = Samples {
        shape: vec![2],
        x: (0..200).map(|at| vec![at as f32 / 100.0 - 1.0, 1.0]).collect(),
        y: (0..200).map(|at| u32::from(at >= 100)).collect(),
    };
    let cases = (0..40)
        .map(|at| Labelled {
            id: format!("c{at}"),
            device: "d".into(),
            input: vec![at as f32 / 20.0 - 1.0, -1.0],
            label: u32::from(at < 20),
        })
        .collect();
    let sets = plan::divide(cases, old.clone(), old, 1);
    Folder(folder.to_owned()).write(&job(2, settings), onnx, &sets).unwrap();
}

/// Runs the trainer on a folder: exit code and the end of standard error.
fn trainer(folder: &Path) -> (Option<i32>, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_farlight-cloud")).arg("train-job").arg(folder).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn network(op: &str) -> Vec<u8> {
    let dims = [Dim::Free("N".into()), Dim::Fixed(2)];
    GraphBuilder::new("t")
        .input("x", &dims)
        .f32("w", &[2, 2], &[0.5, -0.5, 0.25, 0.75])
        .node("MatMul", &["x", "w"], &["h"], &[])
        .node(op, &["h"], &["y"], &[])
        .output("y", &dims)
        .finish()
        .unwrap()
        .to_bytes()
}

#[test]
fn a_trainer_says_by_its_exit_code_how_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let case = |name: &str, onnx: &[u8], settings: Settings| {
        let path = folder.path().join(name);
        write(&path, onnx, settings);
        (trainer(&path), path)
    };
    let quick = Settings { epochs: 3, ..Settings::default() };
    let ((code, said), path) = case("good", &network("Identity"), quick.clone());
    assert_eq!(code, Some(0), "{said}");
    assert!(path.join("out/candidate.onnx").is_file() && path.join("out/metrics.json").is_file());
    assert_eq!(std::fs::read_to_string(path.join("out/progress.jsonl")).unwrap().lines().count(), 4);

    let still = Settings { learning_rate: 1e-30, weight_decay: 0.0, ..quick.clone() };
    assert_eq!(case("still", &network("Identity"), still).0.0, Some(3));

    let ((code, said), _) = case("untrainable", &network("Hardmax"), quick.clone());
    assert_eq!(code, Some(4));
    assert!(said.contains("Hardmax"), "{said}");

    let ((code, said), _) = case("garbage", b"no model", quick.clone());
    assert_eq!(code, Some(1));
    assert!(said.contains("protobuf"), "{said}");

    let ((_, _), path) = case("torn", &network("Identity"), quick);
    std::fs::write(path.join("data/train/x.npy"), b"x").unwrap();
    let (code, said) = trainer(&path);
    assert_eq!(code, Some(1));
    assert!(said.contains("NUMPY"), "{said}");
    assert_eq!(trainer(&folder.path().join("nothing")).0, Some(1));
}
