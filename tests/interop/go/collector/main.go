// Command collector takes spans as Zipkin and OpenTelemetry define them, with their own Go models: Zipkin's JSON by HTTP,
// OTLP by HTTP and by gRPC, all on one port.
//
// It owns nothing but the output: each span is a line of JSON on standard output, after a first line with the address.
package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"

	zipkin "github.com/openzipkin/zipkin-go/model"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// maxBody bounds a report, in bytes.
const maxBody = 8 << 20

// span is one line of output.
type span struct {
	Address  string            `json:"address,omitempty"`
	Protocol string            `json:"protocol,omitempty"`
	Service  string            `json:"service,omitempty"`
	Name     string            `json:"name,omitempty"`
	Kind     string            `json:"kind,omitempty"`
	Trace    string            `json:"trace,omitempty"`
	ID       string            `json:"id,omitempty"`
	Parent   string            `json:"parent,omitempty"`
	Micros   int64             `json:"micros"`
	Began    int64             `json:"began,omitempty"`
	Error    bool              `json:"error,omitempty"`
	Header   string            `json:"header,omitempty"`
	Tags     map[string]string `json:"tags,omitempty"`
}

var lines sync.Mutex

func say(s span) {
	lines.Lock()
	defer lines.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
		log.Fatal(err)
	}
}

func fromZipkin(s zipkin.SpanModel, header string) span {
	out := span{Protocol: "zipkin", Name: s.Name, Kind: string(s.Kind), Trace: s.TraceID.String(), ID: s.ID.String(),
		Micros: s.Duration.Microseconds(), Began: s.Timestamp.UnixMicro(), Tags: s.Tags, Header: header}
	if s.ParentID != nil {
		out.Parent = s.ParentID.String()
	}
	if s.LocalEndpoint != nil {
		out.Service = s.LocalEndpoint.ServiceName
	}
	_, out.Error = s.Tags["error"]
	return out
}

func text(v *common.AnyValue) string {
	switch v := v.GetValue().(type) {
	case *common.AnyValue_StringValue:
		return v.StringValue
	default:
		encoded, _ := json.Marshal(v)
		return string(encoded)
	}
}

func fromOTLP(request *collector.ExportTraceServiceRequest, protocol string) {
	for _, resource := range request.GetResourceSpans() {
		service := ""
		for _, attribute := range resource.GetResource().GetAttributes() {
			if attribute.GetKey() == "service.name" {
				service = text(attribute.GetValue())
			}
		}
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				tags := map[string]string{}
				for _, attribute := range s.GetAttributes() {
					tags[attribute.GetKey()] = text(attribute.GetValue())
				}
				say(span{Protocol: protocol, Service: service, Name: s.GetName(),
					Kind:  strings.TrimPrefix(s.GetKind().String(), "SPAN_KIND_"),
					Trace: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()),
					Parent: hex.EncodeToString(s.GetParentSpanId()), Began: int64(s.GetStartTimeUnixNano() / 1000),
					Micros: int64(s.GetEndTimeUnixNano()-s.GetStartTimeUnixNano()) / 1000,
					Error:  s.GetStatus().GetCode() == 2, Tags: tags})
			}
		}
	}
}

type service struct {
	collector.UnimplementedTraceServiceServer
}

func (service) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	fromOTLP(r, "otlp-grpc")
	return &collector.ExportTraceServiceResponse{}, nil
}

func handle(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	switch {
	case r.Method == http.MethodPost && r.URL.Path == "/api/v2/spans":
		var all []zipkin.SpanModel
		if err = json.Unmarshal(body, &all); err == nil {
			for _, s := range all {
				say(fromZipkin(s, r.Header.Get("x-collector-key")))
			}
			w.WriteHeader(http.StatusAccepted)
		}
	case r.Method == http.MethodPost && r.URL.Path == "/v1/traces":
		request := &collector.ExportTraceServiceRequest{}
		if err = proto.Unmarshal(body, request); err == nil {
			fromOTLP(request, "otlp-http")
		}
	default:
		http.NotFound(w, r)
		return
	}
	if err != nil {
		log.Printf("%s: %v: %s", r.URL.Path, err, body)
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

func main() {
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	calls := grpc.NewServer()
	collector.RegisterTraceServiceServer(calls, service{})
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("content-type"), "application/grpc") {
			calls.ServeHTTP(w, r)
			return
		}
		handle(w, r)
	})}
	say(span{Address: socket.Addr().String()})
	log.Fatal(server.Serve(socket))
}
