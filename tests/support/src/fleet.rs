//! The usual beginning: a cloud with a repository, `watch-gestures` published, devices enrolled.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use farlight_onnx::{Limits, Model, tensor};
use serde_json::{Value, json};

use crate::{Cloud, Device, DeviceOptions, Graph, Operator, Programs, changed_recipe, until, workspace_root};

/// The reference model.
pub const MODEL: &str = "watch-gestures";
/// Longest wait for a rollout.
const ROLLOUT: Duration = Duration::from_secs(120);

/// A cloud, an operator and what they need.
#[derive(Debug)]
pub struct Fleet {
    /// The programs.
    pub programs: Programs,
    /// The cloud.
    pub cloud: Cloud,
    /// The operator.
    pub operator: Operator,
    /// Where everything lies; deleted with this value.
    pub folder: tempfile::TempDir,
}

impl Fleet {
    /// Starts a cloud and begins its release repository.
    ///
    /// # Errors
    /// When something does not come up.
    pub async fn start() -> anyhow::Result<Self> {
        crate::init();
        let programs = Programs::find()?;
        let folder = tempfile::Builder::new().prefix("farlight-").tempdir()?;
        let cloud = Cloud::start(&programs, &folder.path().join("cloud")).await?;
        let operator = cloud.operator(&folder.path().join("keys"));
        operator.begin_repository().await?;
        Ok(Self { programs, cloud, operator, folder })
    }

    /// Builds the reference model as `version`, signs and publishes it; the bundle's folder.
    ///
    /// # Errors
    /// When a command fails.
    pub async fn publish(&self, version: &str) -> anyhow::Result<PathBuf> {
        let model = workspace_root().join("models").join(MODEL);
        self.publish_from(&model.join("release.toml"), &model.join("model.onnx"), version).await
    }

    /// Builds a release from a recipe and a model, signs and publishes it; the bundle's folder.
    ///
    /// # Errors
    /// When a command fails.
    pub async fn publish_from(&self, recipe: &Path, model: &Path, version: &str) -> anyhow::Result<PathBuf> {
        let out = self.folder.path().join(version);
        self.operator.build(recipe, model, version, &out, &[]).await?;
        self.operator.publish(&out).await?;
        Ok(out)
    }

    /// Builds a release of a small graph, signs and publishes it, and waits until a device runs it.
    ///
    /// # Errors
    /// When a command fails, or the device does not run it in time.
    pub async fn install(&self, device: &Device, graph: &Graph, version: &str) -> anyhow::Result<()> {
        let folder = self.folder.path().join(format!("graph-{}-{version}", graph.name));
        std::fs::create_dir(&folder)?;
        let (recipe, model, out) =
            (folder.join("release.toml"), folder.join("model.onnx"), folder.join("bundle"));
        std::fs::write(&recipe, &graph.recipe)?;
        std::fs::write(&model, graph.model.to_bytes())?;
        self.operator.build(&recipe, &model, version, &out, &[]).await?;
        self.operator.publish(&out).await?;
        self.runs(device, graph.name, version).await
    }

    /// Rolls a model's release out and waits until a device runs it and has confirmed it, without requests to it.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn runs(&self, device: &Device, model: &str, version: &str) -> anyhow::Result<()> {
        let unasked = json!({ "min_requests": 0, "probation_seconds": 0 });
        self.roll_out_with(&format!("{model}/{version}"), &unasked).await?;
        until(&format!("{model}/{version} runs"), ROLLOUT, async || {
            let status = device.status().await?;
            let models = status["models"].as_array().cloned().unwrap_or_default();
            let runs = |entry: &Value| {
                entry["model"] == model && entry["version"] == version && entry["update"].is_null()
            };
            Ok(models.iter().any(runs).then_some(()))
        })
        .await
    }

    /// Rolls a configuration release out to devices that run the reference model and waits until all follow it.
    ///
    /// # Errors
    /// When they do not in time.
    pub async fn follows(&self, devices: &[&Device], version: &str) -> anyhow::Result<()> {
        let rollout = self.roll_out_with(&format!("config/{version}"), &json!({})).await?;
        self.rollout_is(&rollout, "completed", devices).await.map(|_| ())
    }

    /// Builds a configuration release from settings, signs and publishes it.
    ///
    /// # Errors
    /// When a command fails.
    pub async fn publish_config(&self, version: &str, settings: &str) -> anyhow::Result<()> {
        let folder = self.folder.path().join(format!("config-{version}"));
        let file = folder.with_extension("toml");
        std::fs::write(&file, settings)?;
        let (file, out) = (file.display().to_string(), folder.display().to_string());
        self.operator.run(&["config", "build", &file, "--version", version, "--out", &out]).await?;
        self.operator.publish(&folder).await
    }

    /// The reference model after a training that moved every weight a little; its file.
    ///
    /// # Errors
    /// When the model cannot be read, or the file not written.
    pub fn retrained_model(&self) -> anyhow::Result<PathBuf> {
        let bytes = std::fs::read(workspace_root().join("models").join(MODEL).join("model.onnx"))?;
        let mut model = Model::parse(&bytes, &Limits::default())?;
        for weights in model.graph().initializer.clone() {
            if weights.data_type() == tensor::FLOAT {
                let values = tensor::to_f32(&weights)?.into_iter().enumerate();
                let moved: Vec<f32> =
                    values.map(|(i, value)| value + 1e-4 * (i as f32 * 0.7).sin()).collect();
                model.replace_f32(weights.name(), &moved)?;
            }
        }
        let path = self.folder.path().join("retrained.onnx");
        std::fs::write(&path, model.to_bytes())?;
        Ok(path)
    }

    /// Takes the whole model file of a published bundle out of the cloud's repository: a device that runs it
    /// then made it by a delta. The file's id.
    ///
    /// # Errors
    /// When the manifest cannot be read, or the file not deleted.
    pub fn withhold_model(&self, bundle: &Path) -> anyhow::Result<String> {
        let manifest: Value = serde_json::from_slice(&std::fs::read(bundle.join("manifest.json"))?)?;
        let id = manifest["variants"][0]["blob"]["id"].as_str().context("no model in the manifest")?;
        std::fs::remove_file(self.cloud.folder().join("repo/blobs").join(id))?;
        Ok(id.to_owned())
    }

    /// The recipe of the reference model with a memory budget that nothing keeps.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn tight_recipe(&self) -> anyhow::Result<PathBuf> {
        let tight = [("memory_kib = 131072", "memory_kib = 64")];
        changed_recipe(&self.folder.path().join("recipe"), &tight)
    }

    /// Enrols and starts a device.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn device(&self, id: &str, options: &DeviceOptions) -> anyhow::Result<Device> {
        let folder = self.folder.path().join(id);
        let mut device = Device::enrol(&self.programs, &self.operator, id, &folder, options).await?;
        device.start().await?;
        Ok(device)
    }

    /// A device that enrols itself at its first start; it does not run yet.
    ///
    /// # Errors
    /// When its enrolment file cannot be made.
    pub async fn unenrolled(&self, id: &str, options: &DeviceOptions) -> anyhow::Result<Device> {
        let folder = self.folder.path().join(id);
        Device::unenrolled(&self.programs, &self.operator, id, &folder, options).await
    }

    /// Creates a rollout to all devices; its id.
    ///
    /// # Errors
    /// When the cloud refuses it.
    pub async fn roll_out(&self, version: &str) -> anyhow::Result<String> {
        self.roll_out_with(&format!("{MODEL}/{version}"), &json!({})).await
    }

    /// Creates a rollout that watches its wave for `soak_seconds`; its id.
    ///
    /// # Errors
    /// When the cloud refuses it.
    pub async fn roll_out_soaking(&self, version: &str, soak_seconds: u64) -> anyhow::Result<String> {
        let release = format!("{MODEL}/{version}");
        self.roll_out_with(&release, &json!({ "soak_seconds": soak_seconds })).await
    }

    /// Creates a rollout of a release with other settings than the usual ones; its id.
    ///
    /// # Errors
    /// When the cloud refuses it.
    pub async fn roll_out_with(&self, release: &str, settings: &Value) -> anyhow::Result<String> {
        let mut body = json!({
            "release": release, "fleet": "default", "waves": [{ "permille": 1000 }],
            "soak_seconds": 0, "probation_seconds": 1, "min_requests": 1,
            "max_failures_permille": 0, "deadline_seconds": 90,
        });
        for (key, value) in settings.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        let created = self.operator.api()?.post("/api/v1/rollouts", &body).await?;
        Ok(created["id"].as_str().context("no id of the rollout")?.to_owned())
    }

    /// Waits until a rollout is in `state`, asking its devices meanwhile: without requests no gate passes.
    ///
    /// # Errors
    /// When it is not in time, or ends otherwise.
    pub async fn rollout_is(&self, id: &str, state: &str, devices: &[&Device]) -> anyhow::Result<Value> {
        until(&format!("rollout {id} is {state}"), ROLLOUT, async || {
            let rollout = self.rollout(id, devices).await?;
            if rollout["state"] != state
                && ["completed", "aborted"].iter().any(|end| rollout["state"] == *end)
            {
                anyhow::bail!("it is {}: {rollout}", rollout["state"]);
            }
            Ok((rollout["state"] == state).then_some(rollout))
        })
        .await
    }

    /// A rollout as it is, after asking each device once.
    ///
    /// # Errors
    /// When the cloud does not answer.
    pub async fn rollout(&self, id: &str, devices: &[&Device]) -> anyhow::Result<Value> {
        for device in devices {
            // Before its first release a device answers 404: that is fine here.
            let _ = Device::infer(&device.client(), MODEL, "asked", &[6, 100], &[0.1; 600]).await;
        }
        self.operator.api()?.get(&format!("/api/v1/rollouts/{id}")).await
    }
}
