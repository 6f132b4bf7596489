//! Every pod of the injector's table of cases, as it comes out, is one that the API server takes (dry run).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use weft_inject::{Config, Injector, Owner, Request, Values};
use weft_k8s_api::Object;
use weft_kube_tests::{Cluster, on_both};
use weft_store::client::WriteOptions;
use weft_store::{ApiClient, ClientError};

on_both!(every_injected_pod_is_taken);

const CASES: &str = include_str!("../../../crates/control/weft-inject/tests/cases.yaml");

fn strings(value: &Value) -> BTreeMap<String, String> {
    let fields = value.as_object().into_iter().flatten();
    fields.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_string())).collect()
}

/// The pod of a case, injected; the fields are explained beside the table.
fn injected(case: &Value, name: &str) -> Result<Value> {
    let mut tree = json!({});
    for (path, value) in case["set"].as_object().into_iter().flatten() {
        *path.split('.').fold(&mut tree, |tree, part| &mut tree[part]) = value.clone();
    }
    let values = Values::new(&tree);
    let config = Config::from_values(&values).map_err(anyhow::Error::msg)?;
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
                         "spec": {"containers": [{"name": "app", "image": "app:1"}]}});
    for field in ["labels", "annotations"] {
        if case[field].is_object() {
            pod["metadata"][field] = case[field].clone();
        }
    }
    for field in ["containers", "initContainers", "volumes"] {
        if case[field].is_array() {
            pod["spec"][field] = case[field].clone();
        }
    }
    for (field, value) in case["spec"].as_object().into_iter().flatten() {
        pod["spec"][field] = value.clone();
    }
    let owner = case["kind"].as_str().map(|kind| Owner { kind: kind.into(), name: "app".into(), ..Owner::default() });
    let request = Request {
        pod,
        namespace: "shop",
        namespace_annotations: strings(&case["namespaceAnnotations"]),
        owner,
        proxy_configs: case["proxyConfigs"].as_array().map_or(&[], Vec::as_slice),
        native_sidecars: case["native"] == true,
        variables: strings(&case["variables"]),
    };
    let injector = Injector { config, values, mesh: case["mesh"].clone() };
    Ok(injector.inject(&request)?)
}

async fn every_injected_pod_is_taken(cluster: Cluster) -> Result<()> {
    cluster.namespace("shop", &[]).await?;
    // Named by a case.
    match cluster.service_account("shop", "shop").await {
        Ok(()) => {}
        Err(error) => println!("account shop: {error:#}"),
    }
    let client = ApiClient::from_kubeconfig(&cluster.kubeconfig(), None).await?;
    let cases = weft_k8s_api::yaml::value(CASES).map_err(anyhow::Error::msg)?;
    let (mut taken, mut wrong) = (0, Vec::new());
    for (at, case) in cases.as_array().context("a list")?.iter().enumerate() {
        if !case["want"].is_object() {
            continue;
        }
        let name = format!("case-{at}");
        let pod = injected(case, &name).with_context(|| case["name"].to_string())?;
        let object: Object = serde_json::from_value(pod)?;
        let options = WriteOptions { dry_run: true, ..WriteOptions::default() };
        match client.create(&object, &options).await {
            Ok(_) => taken += 1,
            Err(error @ ClientError::Invalid { .. }) => wrong.push(format!("{}: {error}", case["name"])),
            Err(error) => wrong.push(format!("{}: {error:?}", case["name"])),
        }
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), wrong.len() + taken, wrong.join("\n"));
    ensure!(taken >= 120, "{taken} pods only");
    Ok(())
}
