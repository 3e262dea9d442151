//! The HTTPS API from outside: authentication, enrolment tokens, the shape of errors, exit codes.

use crate::support::{CloudProcess, TestCloud, data_folder};
use serde_json::json;

fn csr() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_work_once_and_errors_have_one_shape() {
    let cloud = TestCloud::start().await;
    let operator = &cloud.operator;
    let (status, body) = operator.without_token("/api/v1/devices").await;
    assert_eq!(status, 401, "{body}");
    assert!(body.contains("auth.token"), "{body}");
    assert_eq!(operator.without_token("/metrics").await.0, 401);
    assert_eq!(operator.without_token("/api/v1/health").await.0, 200);

    let (_, invitation) = operator.post("/api/v1/devices", json!({"device": "gw-1"})).await;
    let (token, first) = (invitation["token"].clone(), csr());
    let enrol = async |token: &serde_json::Value, csr: &str| {
        operator.post("/api/v1/enrol", json!({"token": token, "csr_pem": csr})).await
    };
    let code =
        |answer: &(u16, serde_json::Value)| answer.1["error"]["code"].as_str().unwrap_or("").to_owned();
    assert_eq!(code(&enrol(&token, "no request").await), "enrol.csr");
    assert_eq!(enrol(&token, &first).await.0, 200);
    // The answer was lost: the same key may ask again, another may not.
    assert_eq!(enrol(&token, &first).await.0, 200);
    assert_eq!(code(&enrol(&token, &csr()).await), "enrol.token_used");
    assert_eq!(code(&enrol(&json!("guess"), &csr()).await), "enrol.token_unknown");

    for (body, expected) in [
        (json!({"device": "Not Valid"}), "http.bad_json"),
        (json!({"device": "gw-2", "colour": 1}), "http.bad_json"),
        (json!({"device": "gw-2", "ttl_seconds": 0}), "enrol.ttl"),
        (json!({"device": "gw-2", "labels": {"": ""}}), "enrol.labels"),
    ] {
        let answer = operator.post("/api/v1/devices", body).await;
        assert_eq!(code(&answer), expected);
        assert!((400..500).contains(&answer.0));
    }
    let large = json!({"device": "gw-2", "labels": {"a": "x".repeat(1_100_000)}});
    assert_eq!(code(&operator.post("/api/v1/devices", large).await), "http.body_too_large");
    assert_eq!(operator.get("/api/v1/audit").await[0]["action"], "device.enrol");
    let document = operator.get("/api/v1/openapi.json").await;
    assert!(document["paths"]["/api/v1/enrol"]["post"].is_object());
    cloud.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_ends_with_the_documented_codes() {
    let data = data_folder();
    let mut cloud = CloudProcess::start(data.path(), "127.0.0.1:0", "127.0.0.1:0");
    let serve = |extra: &[&str], data: &std::path::Path| {
        std::process::Command::new(env!("CARGO_BIN_EXE_farlight-cloud"))
            .args(["serve", "--mqtt", "127.0.0.1:0", "--data"])
            .arg(data)
            .args(extra)
            .output()
            .unwrap()
    };
    let other = data_folder();
    let taken = serve(&["--listen", &cloud.address("api")], other.path());
    assert_eq!(taken.status.code(), Some(3), "{}", String::from_utf8_lossy(&taken.stderr));
    let wrong = serve(&["--listen", "127.0.0.1:0", "--retention-days", "0"], other.path());
    assert_eq!(wrong.status.code(), Some(2));
    // In a folder of its own: beside a write-ahead log SQLite would repair it.
    let other = data_folder();
    std::fs::write(other.path().join("cloud.db"), b"this is no database, whatever its name says").unwrap();
    let damaged = serve(&["--listen", "127.0.0.1:0"], other.path());
    assert_eq!(damaged.status.code(), Some(3), "{}", String::from_utf8_lossy(&damaged.stderr));
    let pid = i32::try_from(cloud.child.id()).unwrap();
    assert!(std::process::Command::new("kill").arg(pid.to_string()).status().unwrap().success());
    assert_eq!(cloud.child.wait().unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_needs_a_token_and_escapes_what_it_shows() {
    let cloud = TestCloud::start().await;
    let operator = &cloud.operator;
    for path in ["/console", "/console/rollouts", "/console/drift", "/console/cases"] {
        assert_eq!(operator.browse(path, "", None).await.0, 303, "{path}");
        assert_eq!(operator.browse(path, "farlight=guess", None).await.0, 303, "{path}");
    }
    assert_eq!(operator.browse("/console/login", "", Some("token=guess")).await.0, 401);
    let (status, cookie, _) =
        operator.browse("/console/login", "", Some(&format!("token={}", operator.token()))).await;
    assert_eq!(status, 303);
    for attribute in ["HttpOnly", "Secure", "SameSite=Strict"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap();
    let labels = json!({"device": "gw-1", "labels": {"<b>": "<script>"}});
    assert_eq!(operator.post("/api/v1/devices", labels).await.0, 200);
    operator.device("gw-1").await;
    let (status, _, page) = operator.browse("/console", cookie, None).await;
    assert!(status == 200 && page.contains("gw-1") && !page.contains("<script"), "{page}");
    for path in ["/console/rollouts", "/console/drift", "/console/cases"] {
        assert_eq!(operator.browse(path, cookie, None).await.0, 200, "{path}");
    }
    let (status, _, page) = operator.browse("/console/rollouts/%3Cscript%3E", cookie, None).await;
    assert!(status == 404 && !page.contains("<script>alert"), "{page}");
    cloud.stop().await;
}
