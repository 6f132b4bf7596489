//! Which program a container runs: its image named in `weft-lab.yaml`, its own `command` when that exists on this machine, or
//! an image that the lab knows. The lab pulls nothing.

use crate::config::LabConfig;
use std::path::{Path, PathBuf};

/// Where programs are looked for.
const PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Programs of Weft itself and of its samples, by the last part of an image's name.
const KNOWN: &[(&str, &[&str])] = &[
    ("pilot", &["weftd"]),
    ("weftd", &["weftd"]),
    ("proxyv2", &["weft-proxy"]),
    ("weft-proxy", &["weft-proxy"]),
    ("auto", &["weft-proxy"]),
    ("examples-bookinfo-productpage-v1", &["weft-samples", "productpage"]),
    ("examples-bookinfo-details-v1", &["weft-samples", "details"]),
    ("examples-bookinfo-ratings-v1", &["weft-samples", "ratings"]),
    ("examples-bookinfo-reviews-v1", &["weft-samples", "reviews", "--version", "v1"]),
    ("examples-bookinfo-reviews-v2", &["weft-samples", "reviews", "--version", "v2"]),
    ("examples-bookinfo-reviews-v3", &["weft-samples", "reviews", "--version", "v3"]),
    ("httpbin", &["weft-samples", "httpbin"]),
    ("go-httpbin", &["weft-samples", "httpbin"]),
    ("examples-helloworld", &["weft-samples", "helloworld"]),
    ("examples-helloworld-v1", &["weft-samples", "helloworld", "--version", "v1"]),
    ("examples-helloworld-v2", &["weft-samples", "helloworld", "--version", "v2"]),
    ("ext-authz", &["weft-samples", "ext-authz"]),
    ("tcp-echo-server", &["weft-samples", "tcp-echo"]),
    ("tornado-websocket-example", &["weft-samples", "websockets"]),
    ("grpc-echo", &["weft-samples", "grpc-echo"]),
    ("greeter", &["weft-samples", "greeter"]),
    ("fortio", &["weft-samples", "fortio"]),
    ("squid", &["weft-samples", "squid"]),
    ("website", &["weft-samples", "website"]),
    ("curl", &["weft-samples", "sleep"]),
    ("sleep", &["weft-samples", "sleep"]),
    ("pause", &["weft-samples", "sleep"]),
];
/// Images whose program the machine may have itself, under the command line of the image.
const OF_THE_MACHINE: &[(&str, &[&str])] =
    &[("nginx", &["nginx", "-g", "daemon off; user root;"]), ("prometheus", &["prometheus"])];
/// The image's nginx has `stream` built in; Debian's has it as a module, which every configuration finds loaded.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// Commands that the samples' images are started with and that the samples program understands itself.
const SAMPLE_COMMANDS: [&str; 2] = ["sleep", "gunicorn"];

/// What a container is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Working directory when the container names none.
    pub folder: Option<PathBuf>,
}

/// The table.
#[derive(Debug, Clone)]
pub struct ImageTable {
    config: LabConfig,
    programs: PathBuf,
}

impl ImageTable {
    /// `programs` is the folder of Weft's own programs.
    pub fn new(config: LabConfig, programs: PathBuf) -> Self {
        Self { config, programs }
    }

    /// Folders that containers see, read-only, so that the programs can run.
    pub fn folders(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.programs.clone()];
        folders.extend(self.config.folder.clone());
        folders.extend(self.config.mounts.iter().cloned());
        folders.dedup();
        folders
    }

    /// Names under which Weft's programs are found in every container: their own, and those that the documents use.
    pub fn links(&self) -> Vec<(String, PathBuf)> {
        let names = [
            ("pilot-agent", "weft-proxy"),
            ("weft-proxy", "weft-proxy"),
            ("pilot-discovery", "weftd"),
            ("weft-samples", "weft-samples"),
            ("fortio", "weft-samples"),
        ];
        names.iter().map(|(name, program)| ((*name).to_string(), self.programs.join(program))).collect()
    }

    /// The program for an image, with the container's own `command` and `args`.
    ///
    /// # Errors
    /// What to write into `weft-lab.yaml`, when nothing is known of the image.
    pub fn resolve(&self, image: &str, command: &[String], args: &[String]) -> Result<Program, String> {
        if let Some(words) = self.configured(image) {
            return Ok(Program {
                argv: self.placed(with_args(words, command, args)),
                folder: self.config.folder.clone(),
            });
        }
        let known = KNOWN.iter().find(|(name, _)| *name == short_name(image)).map(|(_, words)| *words);
        let Some(program) = command.first() else {
            let machine = OF_THE_MACHINE.iter().find(|(name, words)| *name == short_name(image) && exists(words[0]));
            if let Some((_, words)) = machine {
                let mut argv: Vec<String> = words.iter().map(ToString::to_string).collect();
                if words[0] == "nginx" && exists(NGINX_STREAM) {
                    argv[2] = format!("load_module {NGINX_STREAM}; {}", argv[2]);
                }
                argv.extend(args.iter().cloned());
                return Ok(Program { argv, folder: None });
            }
            let words = known.ok_or_else(|| unknown(image))?;
            return Ok(Program { argv: self.own(words, args), folder: None });
        };
        let name = program.rsplit('/').next().unwrap_or(program);
        let rest: Vec<String> = command[1..].iter().chain(args).cloned().collect();
        if known.is_some() && SAMPLE_COMMANDS.contains(&name) {
            return Ok(Program { argv: self.own(&["weft-samples", name], &rest), folder: None });
        }
        if let Some(own) = ["weftd", "weft-proxy", "weft-samples", "weft"].into_iter().find(|own| *own == name) {
            return Ok(Program { argv: self.own(&[own], &rest), folder: None });
        }
        if exists(program) {
            return Ok(Program { argv: command.iter().chain(args).cloned().collect(), folder: None });
        }
        // The image is known but starts its program under a name of its own: the sample stands for all of it.
        let words = known
            .ok_or_else(|| format!("{}; its command {program:?} does not exist on this machine", unknown(image)))?;
        Ok(Program { argv: self.own(words, &[]), folder: None })
    }

    fn own(&self, words: &[&str], args: &[String]) -> Vec<String> {
        let (program, fixed) = words.split_first().map_or(("", &[][..]), |(program, fixed)| (*program, fixed));
        let path = self.programs.join(program).display().to_string();
        std::iter::once(path).chain(fixed.iter().map(ToString::to_string)).chain(args.iter().cloned()).collect()
    }

    fn configured(&self, image: &str) -> Option<Vec<String>> {
        let rows = &self.config.images;
        let exact = rows.get(image).or_else(|| rows.get(without_tag(image)));
        let by_repository = || rows.iter().find(|(name, _)| ends_with_parts(without_tag(image), without_tag(name)));
        exact.or_else(|| by_repository().map(|(_, command)| command)).map(crate::config::ImageCommand::words)
    }

    /// Relative paths of programs mean the folder of `weft-lab.yaml`.
    fn placed(&self, mut words: Vec<String>) -> Vec<String> {
        if let (Some(folder), Some(program)) = (&self.config.folder, words.first_mut())
            && program.contains('/')
            && !program.starts_with('/')
        {
            *program = folder.join(&*program).display().to_string();
        }
        words
    }
}

/// `args` are added; an explicit `command` replaces nothing, because what the image runs here is the user's own choice.
fn with_args(mut words: Vec<String>, _command: &[String], args: &[String]) -> Vec<String> {
    words.extend(args.iter().cloned());
    words
}

fn unknown(image: &str) -> String {
    format!(
        "the lab pulls no images and knows no program for image {image:?}; \
         write into weft-lab.yaml (weft up --config weft-lab.yaml):\nimages:\n  {}: /path/to/program",
        without_tag(image)
    )
}

fn without_tag(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or(image);
    // A colon before the last slash belongs to the registry's port.
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    }
}

fn short_name(image: &str) -> &str {
    without_tag(image).rsplit('/').next().unwrap_or_default()
}

fn ends_with_parts(image: &str, name: &str) -> bool {
    image == name || image.strip_suffix(name).is_some_and(|rest| rest.ends_with('/'))
}

fn exists(program: &str) -> bool {
    if program.contains('/') {
        return Path::new(program).is_file();
    }
    PATH.iter().any(|folder| Path::new(folder).join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ImageCommand;

    fn table() -> ImageTable {
        let images = [
            ("shop/cart".to_string(), ImageCommand::Line("./cart --port 80".into())),
            ("reg.example:5000/db:2".to_string(), ImageCommand::Words(vec!["db".into()])),
        ];
        let config = LabConfig { images: images.into(), folder: Some("/home/u".into()), ..LabConfig::default() };
        ImageTable::new(config, "/weft".into())
    }

    #[test]
    fn images_to_programs() {
        for (image, command, args, expected) in [
            (
                "docker.io/istio/examples-bookinfo-reviews-v2:1.20.3",
                vec![],
                vec![],
                "/weft/weft-samples reviews --version v2",
            ),
            ("istio/tcp-echo-server:1.3", vec![], vec!["9000", "one"], "/weft/weft-samples tcp-echo 9000 one"),
            ("curlimages/curl", vec!["/bin/sleep", "infinity"], vec![], "/weft/weft-samples sleep infinity"),
            ("curlimages/curl", vec!["sh", "-c", "true"], vec![], "sh -c true"),
            (
                "kennethreitz/httpbin",
                vec!["gunicorn", "-b", "0.0.0.0:80"],
                vec![],
                "/weft/weft-samples gunicorn -b 0.0.0.0:80",
            ),
            ("auto", vec![], vec!["router"], "/weft/weft-proxy router"),
            ("docker.io/istio/proxyv2@sha256:12", vec![], vec!["sidecar"], "/weft/weft-proxy sidecar"),
            ("docker.io/shop/cart:7", vec![], vec!["-v"], "/home/u/./cart --port 80 -v"),
            ("reg.example:5000/db:3", vec![], vec![], "db"),
            ("busybox", vec!["sh"], vec!["-c", "exit 1"], "sh -c exit 1"),
        ] {
            let words = |list: Vec<&str>| list.into_iter().map(String::from).collect::<Vec<_>>();
            let program = table().resolve(image, &words(command), &words(args)).unwrap();
            assert_eq!(program.argv.join(" "), expected, "{image}");
        }
    }

    #[test]
    fn unknown_images_say_what_to_write() {
        let error = table().resolve("acme/app:1.2", &[], &[]).unwrap_err();
        assert!(error.contains("weft-lab.yaml") && error.contains("  acme/app: "), "{error}");
        let error = table().resolve("acme/app", &["no-such-thing".into()], &[]).unwrap_err();
        assert!(error.contains("no-such-thing"), "{error}");
    }
}
