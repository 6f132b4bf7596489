//! Rules for `Telemetry`.

use super::Report;
use super::check::set_of;
use crate::istio::{MetricsOverrides, ProviderRef, TagOperation, Telemetry, Tracing};

pub(super) fn check(spec: &Telemetry, report: &mut Report) {
    report.binding(spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs);
    for (i, tracing) in spec.tracing.iter().enumerate() {
        check_tracing(tracing, &format!("spec.tracing[{i}]"), report);
    }
    for (i, metrics) in spec.metrics.iter().enumerate() {
        let path = format!("spec.metrics[{i}]");
        providers(&metrics.providers, &path, report);
        report.duration(format_args!("{path}.reportingInterval"), metrics.reporting_interval);
        for (j, change) in metrics.overrides.iter().enumerate() {
            check_override(change, &format!("{path}.overrides[{j}]"), report);
        }
    }
    for (i, logging) in spec.access_logging.iter().enumerate() {
        let path = format!("spec.accessLogging[{i}]");
        providers(&logging.providers, &path, report);
        if let Some(filter) = &logging.filter {
            let what = "a CEL expression, such as response.code >= 400";
            report.required(format_args!("{path}.filter.expression"), &filter.expression, what);
        }
    }
}

fn providers(list: &[ProviderRef], path: &str, report: &mut Report) {
    for (i, provider) in list.iter().enumerate() {
        let what = "the name of an extension provider of the mesh config";
        report.required(format_args!("{path}.providers[{i}].name"), &provider.name, what);
    }
}

fn check_tracing(tracing: &Tracing, path: &str, report: &mut Report) {
    providers(&tracing.providers, path, report);
    if tracing.providers.len() > 1 {
        report.error(format_args!("{path}.providers"), "has more than one item; traces go to one provider");
    }
    report.percent(
        format_args!("{path}.randomSamplingPercentage"),
        tracing.random_sampling_percentage.unwrap_or_default(),
    );
    for (name, tag) in &tracing.custom_tags {
        let path = format!("{path}.customTags[{name:?}]");
        let set = set_of(&[
            ("literal", tag.literal.is_some()),
            ("environment", tag.environment.is_some()),
            ("header", tag.header.is_some()),
            ("formatter", tag.formatter.is_some()),
        ]);
        match set.len() {
            0 => report.error(&path, "has no value; add literal, environment, header or formatter"),
            1 => {}
            _ => report.error(&path, format!("has {}; keep one", set.join(" and "))),
        }
        if name.is_empty() {
            report.error(&path, "has an empty name");
        }
        for (field, named) in [("environment", &tag.environment), ("header", &tag.header)] {
            if let Some(named) = named {
                report.required(format_args!("{path}.{field}.name"), &named.name, "whose value to take");
            }
        }
        for (field, literal) in [("literal", &tag.literal), ("formatter", &tag.formatter)] {
            if let Some(literal) = literal {
                report.required(format_args!("{path}.{field}.value"), &literal.value, "the value");
            }
        }
    }
}

fn check_override(change: &MetricsOverrides, path: &str, report: &mut Report) {
    if let Some(selector) = &change.r#match {
        if selector.metric.is_some() && selector.custom_metric.is_some() {
            report.error(format_args!("{path}.match"), "has metric and customMetric; keep one");
        }
        if selector.custom_metric.as_deref() == Some("") {
            report.error(format_args!("{path}.match.customMetric"), "is empty; name the metric");
        }
    }
    for (name, tag) in &change.tag_overrides {
        let path = format!("{path}.tagOverrides[{name:?}]");
        match tag.operation {
            TagOperation::Upsert if tag.value.is_empty() => {
                report.error(format_args!("{path}.value"), "is required for UPSERT: a CEL expression");
            }
            TagOperation::Remove if !tag.value.is_empty() => {
                report.error(format_args!("{path}.value"), "does not go with REMOVE; remove it");
            }
            _ => {}
        }
    }
}
