package reports

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/healz/worker/internal/test/posix"
	"github.com/healz/worker/internal/test/wait"
)

const prometheusConfig = `
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [alerts.yaml]
scrape_configs: [{job_name: worker, static_configs: [{targets: [%s]}]}]
`

var (
	errNotReady = errors.New("the server is not ready")
	errAbsent   = errors.New("absent")
)

// prometheus is a Prometheus server of its own.
type prometheus struct {
	url     string
	command *exec.Cmd
}

// startPrometheus starts a Prometheus that scrapes some addresses and evaluates the alerts, both each second.
func startPrometheus(ctx context.Context, program, folder, alerts string, targets []string) (*prometheus, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	if err := configure(folder, targets); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(folder, "alerts.yaml"), []byte(alerts), 0o600); err != nil {
		return nil, fmt.Errorf("write the alerts: %w", err)
	}
	log, err := os.Create(filepath.Join(folder, "prometheus.log"))
	if err != nil {
		return nil, fmt.Errorf("make Prometheus's log: %w", err)
	}
	defer log.Close()
	p := &prometheus{url: "http://" + address}
	p.command = exec.CommandContext(context.WithoutCancel(ctx), program, "--config.file=prometheus.yaml",
		"--storage.tsdb.path=prometheus", "--web.listen-address="+address)
	p.command.Dir, p.command.Stdout, p.command.Stderr = folder, log, log
	p.command.SysProcAttr = &syscall.SysProcAttr{}
	posix.NewGroup(p.command.SysProcAttr)
	if err := p.command.Start(); err != nil {
		return nil, fmt.Errorf("start Prometheus: %w", err)
	}
	if !wait.Until(ctx, time.Minute, 100*time.Millisecond, func(ctx context.Context) bool { return p.get(ctx, "/-/ready", nil) == nil }) {
		p.stop()
		return nil, fmt.Errorf("see %s: %w", log.Name(), errNotReady)
	}
	return p, nil
}

// configure writes Prometheus's settings.
func configure(folder string, targets []string) error {
	config := fmt.Sprintf(prometheusConfig, `"`+strings.Join(targets, `", "`)+`"`)
	if len(targets) == 0 {
		config = fmt.Sprintf(prometheusConfig, "")
	}
	if err := os.WriteFile(filepath.Join(folder, "prometheus.yaml"), []byte(config), 0o600); err != nil {
		return fmt.Errorf("write Prometheus's settings: %w", err)
	}
	return nil
}

// loseTargets lets Prometheus find no worker any more.
func (p *prometheus) loseTargets() error {
	return errors.Join(configure(p.command.Dir, nil), p.command.Process.Signal(syscall.SIGHUP))
}

func (p *prometheus) stop() {
	_ = p.command.Process.Kill()
	_ = p.command.Wait()
}

// get reads a page; into may be nil.
func (p *prometheus) get(ctx context.Context, path string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path, http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, response.Status, body)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}

// query evaluates an expression, and returns its values by the value of a label.
func (p *prometheus) query(ctx context.Context, expression, label string) (map[string]float64, error) {
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string `json:"metric"`
				Value  [2]any            `json:"value"`
			} `json:"result"`
		} `json:"data"`
	}
	if err := p.get(ctx, "/api/v1/query?query="+url.QueryEscape(expression), &answer); err != nil {
		return nil, err
	}
	values := map[string]float64{}
	for _, sample := range answer.Data.Result {
		text, _ := sample.Value[1].(string)
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", expression, err)
		}
		values[sample.Metric[label]] = v
	}
	return values, nil
}

// value evaluates an expression that has one value.
func (p *prometheus) value(ctx context.Context, expression string) (float64, error) {
	values, err := p.query(ctx, expression, "no label")
	if err != nil {
		return 0, err
	}
	v, ok := values[""]
	if !ok {
		return 0, errAbsent
	}
	return v, nil
}

// fired are the alerts that have fired so far.
func (p *prometheus) fired(ctx context.Context) (map[string]float64, error) {
	return p.query(ctx, `max by (alertname) (max_over_time(ALERTS{alertstate="firing"}[1h]))`, "alertname")
}

// freeAddress is one that nobody listens at.
func freeAddress(ctx context.Context) (string, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	return listener.Addr().String(), listener.Close()
}
