package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"hearthline/flow"
)

// tracing says whether the environment asks for traces, by OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_ENDPOINT (or
// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) says where to, OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG how many.
func tracing() bool {
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") || os.Getenv("OTEL_TRACES_EXPORTER") == "none" {
		return false
	}
	return os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "" || os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "" || os.Getenv("OTEL_TRACES_EXPORTER") == "otlp"
}

// openTracer gives a tracer that exports by OTLP over HTTP, nil where the environment asks for none. Spans wait in a queue of bounded
// length; what does not fit, because the collector is away, is dropped.
func openTracer(ctx context.Context, role string) (_ flow.Tracer, end func(context.Context) error, err error) {
	if !tracing() {
		return nil, func(context.Context) error { return nil }, nil
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("traces: %w", err)
	}
	about, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", "hearthline-"+role), attribute.String("service.version", version)),
		resource.WithFromEnv(), resource.WithHost(), resource.WithTelemetrySDK())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, nil, fmt.Errorf("traces: %w", err)
	}
	provider := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(about))
	return tracer{provider.Tracer("hearthline")}, provider.Shutdown, nil
}

// trace opens the process's tracer. end exports what is left.
func (p *process) trace(ctx context.Context, role string) (end func(), err error) {
	tracer, shutdown, err := openTracer(ctx, role)
	if err != nil {
		return nil, err
	}
	p.tracer = tracer
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), traceEnd)
		defer cancel()
		if err := shutdown(ctx); err != nil {
			p.log.Warn("the last traces are lost", "error", err)
		}
	}, nil
}

// traceEnd is how long the last spans may take to be exported when a process ends.
const traceEnd = 3 * time.Second

// tracer is flow.Tracer by OpenTelemetry.
type tracer struct{ trace.Tracer }

// Span implements [flow.Tracer].
func (t tracer) Span(name string, begun time.Time, from []string, about ...slog.Attr) (traceparent string, end func(error)) {
	ctx := context.Background()
	options := []trace.SpanStartOption{trace.WithTimestamp(begun), trace.WithAttributes(attributesOf(about)...)}
	for i, f := range from {
		of := contextOf(f)
		if i == 0 {
			ctx = trace.ContextWithRemoteSpanContext(ctx, of)
		} else {
			options = append(options, trace.WithLinks(trace.Link{SpanContext: of}))
		}
	}
	ctx, span := t.Start(ctx, name, options...)
	if span.SpanContext().IsSampled() {
		carrier := propagation.MapCarrier{}
		propagation.TraceContext{}.Inject(ctx, carrier)
		traceparent = carrier["traceparent"]
	}
	return traceparent, func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
}

func contextOf(traceparent string) trace.SpanContext {
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": traceparent})
	return trace.SpanContextFromContext(ctx)
}

func attributesOf(about []slog.Attr) []attribute.KeyValue {
	out := make([]attribute.KeyValue, len(about))
	for i, a := range about {
		if v := a.Value; v.Kind() == slog.KindInt64 {
			out[i] = attribute.Int64(a.Key, v.Int64())
		} else {
			out[i] = attribute.String(a.Key, v.String())
		}
	}
	return out
}
