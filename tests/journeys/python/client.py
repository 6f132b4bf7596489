"""The Python client library against the lab: CRUD, an informer, custom kinds, commands. Exits with 0 when all of it holds.

Run by tests/kubectl.rs with KUBECONFIG set."""

import threading
import time

from kubernetes import client, config, dynamic, watch
from kubernetes.client.rest import ApiException
from kubernetes.stream import stream

SPACE = "python"


def eventually(what, check, limit=60):
    """Waits until `check` gives something true."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        found = check()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {limit} s")


class Informer:
    """List, then watch from there, for ever; lists again when the server has forgotten where it was."""

    def __init__(self, method, **arguments):
        self.method, self.arguments = method, arguments
        self.objects, self.events, self.version = {}, [], None
        self.watch, self.stopped = watch.Watch(), False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.stopped:
            try:
                if self.version is None:
                    found = self.method(**self.arguments)
                    self.objects = {o.metadata.name: o for o in found.items}
                    self.version = found.metadata.resource_version
                options = dict(resource_version=self.version, timeout_seconds=5, allow_watch_bookmarks=True)
                for event in self.watch.stream(self.method, **self.arguments, **options):
                    self.take(event)
            except ApiException as error:
                assert error.status == 410, error
                self.version = None
            except Exception:
                # Stopping closes the connection under the reader.
                if not self.stopped:
                    raise

    def take(self, event):
        raw = event["raw_object"]
        self.version = raw["metadata"]["resourceVersion"]
        if event["type"] == "BOOKMARK":
            return
        self.events.append((event["type"], raw["metadata"]["name"]))
        if event["type"] == "DELETED":
            self.objects.pop(raw["metadata"]["name"], None)
        else:
            self.objects[raw["metadata"]["name"]] = event["object"]

    def stop(self):
        self.stopped = True
        self.watch.stop()


def crud(core):
    body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="one", labels={"app": "x"}), data={"a": "1"})
    made = core.create_namespaced_config_map(SPACE, body)
    assert made.metadata.uid and made.data == {"a": "1"}
    try:
        core.create_namespaced_config_map(SPACE, body)
        raise AssertionError("made twice")
    except ApiException as error:
        assert (error.status, error.reason) == (409, "Conflict"), error
    core.patch_namespaced_config_map("one", SPACE, {"data": {"b": "2"}})
    read = core.read_namespaced_config_map("one", SPACE)
    assert read.data == {"a": "1", "b": "2"}
    read.data = {"c": "3"}
    replaced = core.replace_namespaced_config_map("one", SPACE, read)
    assert replaced.data == {"c": "3"} and replaced.metadata.resource_version != made.metadata.resource_version
    try:
        core.replace_namespaced_config_map("one", SPACE, read)
        raise AssertionError("an old version was written")
    except ApiException as error:
        assert error.status == 409
    dry = core.create_namespaced_config_map(
        SPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(generate_name="dry-")), dry_run="All"
    )
    assert dry.metadata.name.startswith("dry-")
    for number in range(5):
        name = f"page-{number}"
        core.create_namespaced_config_map(SPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name)))
    names, token = [], None
    while True:
        page = core.list_namespaced_config_map(SPACE, limit=2, _continue=token)
        names += [o.metadata.name for o in page.items]
        token = page.metadata._continue
        if not token:
            break
    assert [n for n in names if n.startswith("page-")] == [f"page-{n}" for n in range(5)], names
    chosen = core.list_namespaced_config_map(SPACE, label_selector="app in (x, y)", field_selector="metadata.name=one")
    assert [o.metadata.name for o in chosen.items] == ["one"]
    core.delete_collection_namespaced_config_map(SPACE, label_selector="app=x")
    try:
        core.read_namespaced_config_map("one", SPACE)
        raise AssertionError("still there")
    except ApiException as error:
        assert error.status == 404


def informer(core):
    watched = Informer(core.list_namespaced_config_map, namespace=SPACE)
    eventually("the list", lambda: watched.version)
    for number in range(20):
        name = f"seen-{number}"
        core.create_namespaced_config_map(SPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name)))
        core.patch_namespaced_config_map(name, SPACE, {"data": {"n": str(number)}})
        if number % 2:
            core.delete_namespaced_config_map(name, SPACE)

    def same():
        there = {o.metadata.name: o.data for o in core.list_namespaced_config_map(SPACE).items}
        return there == {name: o.data for name, o in watched.objects.items()}

    eventually("what the informer knows", lambda: len(watched.events) >= 50 and same())
    of_one = [kind for kind, name in watched.events if name == "seen-1"]
    assert of_one == ["ADDED", "MODIFIED", "DELETED"], of_one
    watched.stop()
    # A revision that is not (or no longer) known: the client is told to list again.
    try:
        for _ in watch.Watch().stream(core.list_namespaced_config_map, SPACE, resource_version="1", timeout_seconds=5):
            raise AssertionError("an event from before the beginning")
        raise AssertionError("the watch did not say that its revision is gone")
    except ApiException as error:
        assert error.status == 410, error


def custom(api):
    schema = {
        "type": "object",
        "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer", "default": 3}}}},
    }
    client.ApiextensionsV1Api(api).create_custom_resource_definition(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "gadgets.python.example"},
            "spec": {
                "group": "python.example",
                "scope": "Namespaced",
                "names": {"plural": "gadgets", "kind": "Gadget"},
                "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
            },
        }
    )
    gadgets = dynamic.DynamicClient(api).resources.get(api_version="python.example/v1", kind="Gadget")
    made = gadgets.create(
        namespace=SPACE,
        body={"apiVersion": "python.example/v1", "kind": "Gadget", "metadata": {"name": "g"}, "spec": {}},
    )
    assert made.spec.size == 3
    applied = gadgets.server_side_apply(
        namespace=SPACE,
        name="g",
        field_manager="python",
        force_conflicts=True,
        body={"apiVersion": "python.example/v1", "kind": "Gadget", "metadata": {"name": "g"}, "spec": {"size": 4}},
    )
    assert applied.spec.size == 4
    routes = dynamic.DynamicClient(api).resources.get(api_version="networking.istio.io/v1", kind="VirtualService")
    body = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": "r"},
        "spec": {"hosts": ["r"], "http": [{"route": [{"destination": {"host": "r"}}]}]},
    }
    assert routes.create(namespace=SPACE, body=body).spec.hosts == ["r"]
    body["spec"]["http"][0]["route"][0]["weight"] = -1
    body["metadata"]["name"] = "bad"
    try:
        routes.create(namespace=SPACE, body=body)
        raise AssertionError("a negative weight was taken")
    except dynamic.exceptions.DynamicApiError as error:
        assert error.status == 422 and "weight" in str(error.body), error
    client.ApiextensionsV1Api(api).delete_custom_resource_definition("gadgets.python.example")


def pods(core):
    container = client.V1Container(name="main", image="sleep", command=["sleep", "600"])
    pod = client.V1Pod(metadata=client.V1ObjectMeta(name="p"), spec=client.V1PodSpec(containers=[container]))
    core.create_namespaced_pod(SPACE, pod)
    eventually("the pod runs", lambda: core.read_namespaced_pod_status("p", SPACE).status.phase == "Running")
    command = ["sh", "-c", "echo out; echo err >&2; exit 3"]
    session = stream(
        core.connect_get_namespaced_pod_exec, "p", SPACE, command=command, stdout=True, stderr=True, _preload_content=False
    )
    session.run_forever(timeout=30)
    assert not session.is_open(), "the command did not end"
    assert session.read_stdout(timeout=1) == "out\n" and session.read_stderr(timeout=1) == "err\n"
    assert session.returncode == 3, session.returncode
    session = stream(
        core.connect_get_namespaced_pod_exec, "p", SPACE, command=["head", "-n1"], stdin=True, stdout=True,
        _preload_content=False,
    )
    session.write_stdin("through\n")
    session.run_forever(timeout=30)
    assert not session.is_open(), "the command did not end"
    assert session.read_stdout(timeout=1) == "through\n"
    core.delete_namespaced_pod("p", SPACE, grace_period_seconds=0)


def rights(api):
    review = client.V1SelfSubjectAccessReview(
        spec=client.V1SelfSubjectAccessReviewSpec(
            resource_attributes=client.V1ResourceAttributes(verb="create", resource="pods", namespace=SPACE)
        )
    )
    assert client.AuthorizationV1Api(api).create_self_subject_access_review(review).status.allowed
    lease = client.V1Lease(
        metadata=client.V1ObjectMeta(name="leader"), spec=client.V1LeaseSpec(holder_identity="me", lease_duration_seconds=15)
    )
    assert client.CoordinationV1Api(api).create_namespaced_lease(SPACE, lease).spec.holder_identity == "me"


def main():
    api = config.new_client_from_config()
    core = client.CoreV1Api(api)
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=SPACE)))
    for step in (lambda: crud(core), lambda: informer(core), lambda: custom(api), lambda: pods(core), lambda: rights(api)):
        step()
    core.delete_namespace(SPACE)
    print("all of it holds")


if __name__ == "__main__":
    main()
