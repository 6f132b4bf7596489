// Command control-plane is an xDS server that no one here wrote: Envoy's go-control-plane, its cache and its ADS server.
//
// It owns nothing but its remote control. Each line on standard input is a snapshot as JSON:
//
//	{"version": "1", "clusters": [..], "endpoints": [..], "listeners": [..], "routes": [..]}
//
// whose resources are in protobuf's JSON. Each line on standard output is a JSON object: first the address it listens on,
// then every request of a client, so that tests see what is subscribed, acknowledged and refused.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"
	"sync"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// node is the only client's id: a snapshot is of one node.
const node = "interop"

// maxLine bounds a snapshot, in bytes.
const maxLine = 16 << 20

type snapshot struct {
	Version   string            `json:"version"`
	Clusters  []json.RawMessage `json:"clusters"`
	Endpoints []json.RawMessage `json:"endpoints"`
	Listeners []json.RawMessage `json:"listeners"`
	Routes    []json.RawMessage `json:"routes"`
}

// event is one line of output.
type event struct {
	Address string   `json:"address,omitempty"`
	Delta   bool     `json:"delta,omitempty"`
	Type    string   `json:"type,omitempty"`
	Version string   `json:"version,omitempty"`
	Nonce   string   `json:"nonce,omitempty"`
	Names   []string `json:"names,omitempty"`
	Error   string   `json:"error,omitempty"`
	Node    string   `json:"node,omitempty"`
	Set     string   `json:"set,omitempty"`
}

var lines sync.Mutex

func say(e event) {
	lines.Lock()
	defer lines.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(e); err != nil {
		log.Fatal(err)
	}
}

// decode reads resources of the type that make gives.
func decode(raw []json.RawMessage, make func() proto.Message) ([]types.Resource, error) {
	var all []types.Resource
	for _, text := range raw {
		message := make()
		if err := protojson.Unmarshal(text, message); err != nil {
			return nil, fmt.Errorf("%w in %s", err, text)
		}
		all = append(all, message)
	}
	return all, nil
}

func read(line []byte) (*cache.Snapshot, error) {
	var in snapshot
	if err := json.Unmarshal(line, &in); err != nil {
		return nil, err
	}
	resources := map[resource.Type][]types.Resource{}
	for _, part := range []struct {
		url  resource.Type
		raw  []json.RawMessage
		make func() proto.Message
	}{
		{resource.ClusterType, in.Clusters, func() proto.Message { return &cluster.Cluster{} }},
		{resource.EndpointType, in.Endpoints, func() proto.Message { return &endpoint.ClusterLoadAssignment{} }},
		{resource.ListenerType, in.Listeners, func() proto.Message { return &listener.Listener{} }},
		{resource.RouteType, in.Routes, func() proto.Message { return &route.RouteConfiguration{} }},
	} {
		all, err := decode(part.raw, part.make)
		if err != nil {
			return nil, err
		}
		resources[part.url] = all
	}
	return cache.NewSnapshot(in.Version, resources)
}

func id(n *core.Node) string {
	if n == nil {
		return ""
	}
	return n.GetId()
}

func message(s *status.Status) string { return s.GetMessage() }

func callbacks() server.Callbacks {
	return server.CallbackFuncs{
		StreamRequestFunc: func(_ int64, r *discovery.DiscoveryRequest) error {
			say(event{Type: r.GetTypeUrl(), Version: r.GetVersionInfo(), Nonce: r.GetResponseNonce(),
				Names: r.GetResourceNames(), Error: message(r.GetErrorDetail()), Node: id(r.GetNode())})
			return nil
		},
		StreamDeltaRequestFunc: func(_ int64, r *discovery.DeltaDiscoveryRequest) error {
			say(event{Delta: true, Type: r.GetTypeUrl(), Nonce: r.GetResponseNonce(),
				Names: r.GetResourceNamesSubscribe(), Error: message(r.GetErrorDetail()), Node: id(r.GetNode())})
			return nil
		},
	}
}

func main() {
	ctx := context.Background()
	snapshots := cache.NewSnapshotCache(true, cache.IDHash{}, nil)
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	serving := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(serving, server.NewServer(ctx, snapshots, callbacks()))
	go func() { log.Fatal(serving.Serve(socket)) }()
	say(event{Address: socket.Addr().String()})

	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, maxLine)
	for input.Scan() {
		taken, err := read(input.Bytes())
		if err == nil {
			err = snapshots.SetSnapshot(ctx, node, taken)
		}
		if err != nil {
			log.Fatal(err)
		}
		say(event{Set: taken.GetVersion(resource.ListenerType)})
	}
}
