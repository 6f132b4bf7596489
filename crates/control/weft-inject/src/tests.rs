//! Templates, choosing, and files; the table of pods is in `tests/cases.yaml`.

use crate::documents::Options;
use crate::{Config, Decision, Injector, Values, decide, inject_text, template};
use serde_json::{Value, json};
use std::collections::BTreeMap;

#[test]
fn template_language() {
    let data = json!({
        "ObjectMeta": {"labels": {"app": "web"}, "annotations": {"a/b": "c", "n": "7"}},
        "Spec": {"containers": [{"name": "one", "ports": [{"containerPort": 80}]}, {"name": "two"}]},
        "Values": {"on": true, "off": false, "text": "Hi", "map": {"b": 2, "a": "1"}, "list": [1, 2]},
    });
    for (text, wanted) in [
        ("plain", "plain"),
        ("a {{- /* gone */ -}} b", "ab"),
        ("{{ .ObjectMeta.Labels.app }}", "web"),
        ("{{ index .ObjectMeta.Annotations `a/b` }}", "c"),
        ("{{ index .ObjectMeta.Annotations \"none\" | default \"d\" | quote }}", "\"d\""),
        ("{{ if .Values.on }}yes{{ else }}no{{ end }}", "yes"),
        ("{{ if .Values.off }}a{{ else if eq .Values.text \"Hi\" }}b{{ else }}c{{ end }}", "b"),
        ("{{ range .Spec.Containers }}[{{ .Name }}]{{ end }}", "[one][two]"),
        ("{{ range $i, $c := .Spec.Containers }}{{ $i }}={{ $c.Name }};{{ end }}", "0=one;1=two;"),
        ("{{ range $k, $v := .Values.map }}{{ $k }}{{ $v }}{{ end }}", "a1b2"),
        ("{{ range .Values.none }}x{{ else }}empty{{ end }}", "empty"),
        ("{{ with .Values.text }}<{{ . }}>{{ end }}", "<Hi>"),
        (
            "{{ $x := list }}{{ range .Spec.Containers }}{{ $x = append $x .Name }}{{ end }}{{ join \",\" $x }}",
            "one,two",
        ),
        ("{{ with $.Values.map }}{{ .a }}{{ $.Values.text }}{{ end }}", "1Hi"),
        ("{{ (index .Spec.Containers 0).Name | upper }}", "ONE"),
        ("{{ printf \"%s-%d%%\" .Values.text 5 }}", "Hi-5%"),
        ("{{ and .Values.on .Values.text }}{{ or .Values.off \"z\" }}{{ not .Values.off }}", "Hiztrue"),
        ("{{ if ge (len .Spec.Containers) 2 }}many{{ end }}", "many"),
        ("{{ isset .ObjectMeta.Annotations `n` }} {{ annotation .ObjectMeta `x` 9 }}", "true 9"),
        ("{{ trunc 3 \"abcdef\" | trimAll \"a\" }}", "bc"),
        ("{{ toJSON .Values.list }} {{ .Values.map | toYaml | nindent 2 }}", "[1,2] \n  b: 2\n  a: \"1\""),
        ("{{ contains \"i\" .Values.text }} {{ ternary \"a\" \"b\" false }}", "true b"),
        ("{{ valueOrDefault .Values.none \"d\" }}{{ .Values.none }}", "d"),
    ] {
        assert_eq!(template::run(text, &data).as_deref().map(str::to_string), Ok(wanted.to_string()), "{text}");
    }
}

#[test]
fn templates_that_are_wrong_say_where() {
    let data = json!({"l": vec![0; 1000]});
    for (text, said) in [
        ("a\n{{ nope }}", "line 2: the function \"nope\""),
        ("{{ if .a }}", "end }} is missing"),
        ("{{ end }}", "without its beginning"),
        ("{{ .a", "without }}"),
        ("{{ \"a }}", "without }}"),
        ("{{ define \"x\" }}{{ end }}", "define is not supported"),
        ("{{ $x = 1 }}", "before it is declared"),
        ("{{ $x }}", "not declared"),
        ("{{ .a .b }}", "only a function"),
        ("{{ (.a }}", "parenthesis"),
        ("{{ lt .a 1 }}", "numbers"),
        ("{{ range 3 }}{{ end }}", "neither a list nor a map"),
        ("{{ | }}", "missing"),
        ("{{ # }}", "not expected"),
        ("{{ range .l }}{{ range $.l }}{{ range $.l }}x{{ end }}{{ end }}{{ end }}", "too many steps"),
    ] {
        let error = template::run(text, &data).unwrap_err();
        assert!(error.contains(said), "{text}: {error}");
    }
    let deep = "{{ if 1 }}".repeat(100);
    assert!(template::check(&deep).unwrap_err().contains("nested deeper"));
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(200), ")".repeat(200));
    assert!(template::check(&deep).unwrap_err().contains("nested deeper"));
    let config = Config::parse("templates: {x: '{{ nope }}'}").unwrap_err();
    assert!(config.starts_with("templates.x: line 1"), "{config}");
}

#[test]
fn who_comes_to_which_injector() {
    let labels = |value: Value| -> BTreeMap<String, String> { crate::pod::strings(&value) };
    let (none, on, off) = (json!({}), json!({"istio-injection": "enabled"}), json!({"istio-injection": "disabled"}));
    let rev = json!({"istio.io/rev": "canary"});
    let both = json!({"istio-injection": "enabled", "istio.io/rev": "canary"});
    let inject = |value: &str| json!({"sidecar.istio.io/inject": value});
    let asks_rev = json!({"sidecar.istio.io/inject": "true", "istio.io/rev": "canary"});
    for (namespace, pod, auto, wanted) in [
        (&on, inject("true"), false, Some("default")),
        (&on, none.clone(), false, Some("default")),
        (&on, inject("false"), false, None),
        (&off, inject("true"), false, None),
        (&off, none.clone(), true, None),
        (&off, inject("false"), false, None),
        (&none, inject("true"), false, Some("default")),
        (&none, none.clone(), false, None),
        (&none, none.clone(), true, Some("default")),
        (&none, inject("false"), true, None),
        (&rev, none.clone(), false, Some("canary")),
        (&rev, inject("false"), false, None),
        (&none, rev.clone(), false, Some("canary")),
        (&none, asks_rev, false, Some("canary")),
        (&both, none.clone(), false, Some("default")),
        (&on, rev.clone(), false, Some("default")),
        (&rev, json!({"istio.io/rev": "other"}), false, Some("canary")),
    ] {
        let pod = json!({"metadata": {"labels": pod}});
        assert_eq!(decide::chosen(&labels(namespace.clone()), &pod, auto), wanted, "{namespace} {pod} {auto}");
    }
}

fn injected(text: &str) -> crate::documents::Injected {
    inject_text(&Injector::default(), text, &Options { namespace: "shop".into(), ..Options::default() }).unwrap()
}

const POD_SPEC: &str = "{containers: [{name: app, image: i}]}";

fn workload(api: &str, kind: &str) -> String {
    let template = format!("{{metadata: {{labels: {{app: x}}}}, spec: {POD_SPEC}}}");
    let spec = match kind {
        "Pod" => POD_SPEC.to_string(),
        "CronJob" => format!("{{schedule: '* * * * *', jobTemplate: {{spec: {{template: {template}}}}}}}"),
        _ => format!("{{template: {template}}}"),
    };
    format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {spec}\n")
}

#[test]
fn every_kind_of_workload_in_a_file() {
    for (api, kind) in [
        ("v1", "Pod"),
        ("apps/v1", "Deployment"),
        ("apps/v1", "ReplicaSet"),
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "DaemonSet"),
        ("v1", "ReplicationController"),
        ("batch/v1", "Job"),
        ("batch/v1", "CronJob"),
    ] {
        let made = injected(&workload(api, kind));
        assert!(
            made.text.contains("name: istio-proxy") && made.text.contains("sidecar.istio.io/status"),
            "{kind}: {made:?}"
        );
        assert_eq!(injected(&made.text).text, made.text, "{kind}: again");
        let list =
            format!("apiVersion: v1\nkind: List\nitems:\n- {}", workload(api, kind).trim_end().replace('\n', "\n  "));
        assert!(injected(&list).text.contains("istio-proxy"), "{kind} in a list");
    }
}

#[test]
fn everything_else_stays_byte_for_byte() {
    let service = "# a comment\napiVersion: v1\nkind:   Service\nmetadata: {name:   x}\n";
    let custom = "apiVersion: elasticsearch.k8s.elastic.co/v1\nkind: Elasticsearch\nmetadata: {name: es}\nspec:\n  nodeSets:\n  - podTemplate: {spec: {containers: [{name: elasticsearch}]}}\n";
    let broken = "not: [yaml\n";
    let host = workload("v1", "Pod").replace("{containers", "{hostNetwork: true, containers");
    for text in [service, custom, broken, "", "---\n", &host, &format!("{service}---\n{custom}\n---\n{service}")] {
        assert_eq!(injected(text).text, text);
    }
    assert!(injected(&host).warnings[0].contains("Pod x gets no proxy"), "{:?}", injected(&host).warnings);
    let mixed = format!("{service}---\n{}--- # next\n{custom}", workload("apps/v1", "Deployment"));
    let made = injected(&mixed).text;
    assert!(
        made.starts_with(&format!("{service}---\napiVersion: apps/v1"))
            && made.ends_with(&format!("--- # next\n{custom}")),
        "{made}"
    );
    let bad = workload("v1", "Pod").replace("{name: x}", "{name: x, annotations: {proxy.istio.io/config: '[]'}}");
    let error = inject_text(&Injector::default(), &bad, &Options::default()).unwrap_err();
    assert!(error.starts_with("Pod x: metadata.annotations[proxy.istio.io/config]"), "{error}");
}

/// The operator and the nodes of Elastic's manifests (spec 3:EC-01 … EC-05, EC-10).
#[test]
fn elastic_on_kubernetes() {
    let operator = "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: elastic-operator, namespace: elastic-system}\nspec:\n  template:\n    metadata:\n      annotations:\n        traffic.sidecar.istio.io/includeInboundPorts: '*'\n        traffic.sidecar.istio.io/excludeInboundPorts: \"9443\"\n    spec:\n      containers:\n      - {name: manager, image: eck, ports: [{name: https-webhook, containerPort: 9443}]}\n";
    let made = weft_k8s_api::yaml::value(&injected(operator).text).unwrap();
    let spec = &made["spec"]["template"]["spec"];
    let names: Vec<&str> = spec["containers"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["manager", "istio-proxy"]);
    let after = |pod: &Value, flag: &str| {
        let args =
            pod["initContainers"].as_array().unwrap().iter().find(|c| c["name"] == "istio-init").unwrap()["args"]
                .clone();
        let args = args.as_array().unwrap().clone();
        let at = args.iter().position(|arg| arg == flag).unwrap();
        args[at + 1].as_str().unwrap().to_string()
    };
    assert_eq!((after(spec, "-b"), after(spec, "-d")), ("*".into(), "15090,15021,9443,15020".into()));
    let node = json!({
        "metadata": {"name": "es-0", "annotations": {
            "traffic.sidecar.istio.io/includeInboundPorts": "*", "traffic.sidecar.istio.io/excludeOutboundPorts": "9300,443",
            "traffic.sidecar.istio.io/excludeInboundPorts": "9300", "sidecar.istio.io/rewriteAppHTTPProbers": "true"}},
        "spec": {"automountServiceAccountToken": true,
                 "initContainers": [{"name": "install-plugins", "image": "es"}],
                 "containers": [{"name": "elasticsearch", "image": "es", "readinessProbe": {"httpGet": {"path": "/", "port": 9200, "scheme": "HTTPS"}}}]},
    });
    let request = crate::Request { pod: node, namespace: "default", ..crate::Request::default() };
    let made = Injector::default().inject(&request).unwrap();
    assert_eq!(
        (after(&made["spec"], "-o"), after(&made["spec"], "-d")),
        ("9300,443".into(), "15090,15021,9300,15020".into())
    );
    assert_eq!(made["spec"]["initContainers"][0]["name"], "install-plugins");
    assert_eq!(made["spec"]["containers"][0]["readinessProbe"]["httpGet"]["scheme"], "HTTP");
    assert_eq!(made["spec"]["automountServiceAccountToken"], true);
}

#[test]
fn settings_of_the_config_map() {
    let config = Config::parse("policy: disabled\ndefaultTemplates:\nneverInjectSelector:\n- matchExpressions: [{key: a, operator: In, values: [b]}]\n").unwrap();
    assert_eq!(config.default_templates, ["sidecar"]);
    let pod = json!({"metadata": {"labels": {"a": "b"}}, "spec": {}});
    assert!(matches!(crate::decide(&config, &pod, "n"), Decision::Skip(why) if why.contains("never")));
    for (text, said) in [("policy: sometimes", "sometimes"), ("defaultTemplates: 3", "sequence"), ("a: [", "line")] {
        let error = Config::parse(text).unwrap_err();
        assert!(error.contains(said), "{text}: {error}");
    }
    assert!(Config::from_values(&Values::new(&json!({"sidecarInjectorWebhook": {"templates": {"x": "{{"}}}))).is_err());
}
