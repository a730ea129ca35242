package testservers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/healz/worker/internal/test/posix"
)

// errRefused is an expression that the broker could not evaluate.
var errRefused = errors.New("refused")

// startRabbitMQ starts a broker with the plugins for management and consistent hashing, whose data do not outlive it.
//
// A node needs epmd, the Erlang port mapper, and leaves a daemon behind where none runs. So the node is given one on a
// port of its own, which is stopped with it; the nodes of a cluster share that of the first one.
func startRabbitMQ(ctx context.Context, dir string, _ bool) (*server, error) {
	program, err := rabbitMQServer().find(ctx)
	if err != nil {
		return nil, err
	}
	mapper, err := epmd().find(ctx)
	if err != nil {
		return nil, err
	}
	certificates := filepath.Join(dir, "certificates")
	if err := writeCertificates(certificates); err != nil {
		return nil, err
	}
	home, keys := inRoot(dir), inRoot(certificates) // as the broker sees them
	ports, err := freePorts(ctx, 5)
	if err != nil {
		return nil, err
	}
	amqpPort, managementPort, distributionPort, mapperPort, tlsPort := ports[0], ports[1], ports[2], ports[3], ports[4]
	mapperPort = cmp.Or(os.Getenv(mapperVariable), mapperPort)
	nodeName := "test" + os.Getenv(nodeVariable) + "@localhost"
	node, inCluster, erlangArguments := os.Getenv(nodeVariable), "", "-kernel inet_dist_use_interface {127,0,0,1}"
	if node != "" {
		erlangArguments += " -kernel net_ticktime 5 -rabbit quorum_tick_interval 500"
		inCluster = "cluster_partition_handling = pause_minority\n" +
			"cluster_formation.peer_discovery_backend = classic_config\n" +
			"cluster_formation.classic_config.nodes.1 = test1@localhost\n"
		if node != "1" {
			inCluster += "cluster_formation.classic_config.nodes.2 = " + nodeName + "\n"
		}
		if err := os.WriteFile(filepath.Join(dir, ".erlang.cookie"), []byte(os.Getenv(cookieVariable)), 0o400); err != nil {
			return nil, fmt.Errorf("write the cluster's cookie: %w", err)
		}
	}

	config, plugins := filepath.Join(dir, "rabbitmq.conf"), filepath.Join(dir, "enabled_plugins")
	for path, content := range map[string]string{
		config: "listeners.tcp.1 = 127.0.0.1:" + amqpPort + "\n" +
			"listeners.ssl.1 = 127.0.0.1:" + tlsPort + "\n" +
			"ssl_options.cacertfile = " + filepath.Join(keys, caFile) + "\n" +
			"ssl_options.certfile = " + filepath.Join(keys, serverFile) + "\n" +
			"ssl_options.keyfile = " + filepath.Join(keys, serverKey) + "\n" +
			"ssl_options.verify = verify_peer\n" +
			"ssl_options.fail_if_no_peer_cert = true\n" +
			"vm_memory_calculation_strategy = erlang\n" + // the others need /proc, which another root may lack
			"management.tcp.ip = 127.0.0.1\n" +
			"management.tcp.port = " + managementPort + "\n" + inCluster,
		plugins: "[rabbitmq_management,rabbitmq_consistent_hash_exchange].\n",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return nil, fmt.Errorf("write the broker's settings: %w", err)
		}
	}
	env := environment(home,
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"ERL_EPMD_PORT="+mapperPort,
		"RABBITMQ_NODENAME="+nodeName,
		"RABBITMQ_DIST_PORT="+distributionPort,
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+erlangArguments,
		"RABBITMQ_CONFIG_FILE="+inRoot(config),
		"RABBITMQ_ADVANCED_CONFIG_FILE="+filepath.Join(home, "advanced.config"),
		"RABBITMQ_CONF_ENV_FILE="+filepath.Join(home, "rabbitmq-env.conf"),
		"RABBITMQ_ENABLED_PLUGINS_FILE="+inRoot(plugins),
		"RABBITMQ_MNESIA_BASE="+filepath.Join(home, "mnesia"),
		"RABBITMQ_LOG_BASE="+filepath.Join(home, "log"),
		"RABBITMQ_LOGS=-",
	)

	run := func(ctx context.Context, program string, arguments ...string) *exec.Cmd {
		command := exec.CommandContext(ctx, program, arguments...)
		command.Dir, command.Env, command.SysProcAttr = home, env, &syscall.SysProcAttr{}
		posix.NewRoot(command.SysProcAttr, root())
		return command
	}
	stopMapper := func() {}
	if os.Getenv(mapperVariable) == "" {
		portMapper, err := startReady(ctx, run(context.WithoutCancel(ctx), mapper), dir, syscall.SIGKILL, listening(mapperPort))
		if err != nil {
			return nil, err
		}
		stopMapper = func() { portMapper.stop(syscall.SIGKILL) }
	}
	management := "http://guest:guest@127.0.0.1:" + managementPort
	s := &server{
		settings: map[string]string{
			rabbitMQURL:          "amqp://guest:guest@127.0.0.1:" + amqpPort + "/",
			managementURL:        management,
			rabbitMQTLSPort:      tlsPort,
			rabbitMQCertificates: certificates,
			rabbitMQNode:         nodeName,
			rabbitMQMapperPort:   mapperPort,
		},
		gentle: syscall.SIGTERM,
		start: func(ctx context.Context) (*process, error) {
			return startReady(ctx, run(context.WithoutCancel(ctx), program), dir, syscall.SIGKILL,
				healthy(management+"/api/health/checks/port-listener/"+amqpPort))
		},
		control: func(ctx context.Context, arguments []string) (string, error) {
			if arguments[0] == "eval" { // in a hundredth of the time that rabbitmqctl needs to start
				command := run(ctx, filepath.Join(filepath.Dir(mapper), "erl_call"), "-n", nodeName, "-e")
				command.Stdin = strings.NewReader(arguments[1] + "\n")
				output, err := command.CombinedOutput()
				term, ok := strings.CutPrefix(string(output), "{ok, ")
				if err != nil || !ok || strings.HasPrefix(term, "{error") {
					return "", fmt.Errorf("eval %s: %w\n%s", arguments[1], cmp.Or(err, errRefused), output)
				}
				return strings.TrimSuffix(term, "}"), nil
			}
			output, err := run(ctx, filepath.Join(filepath.Dir(program), "rabbitmqctl"), arguments...).CombinedOutput()
			if err != nil {
				return "", fmt.Errorf("rabbitmqctl %s: %w\n%s", arguments[0], err, output)
			}
			return string(output), nil
		},
	}
	if s.process, err = s.start(ctx); err != nil {
		stopMapper()
		return nil, err
	}
	s.stop = func() {
		s.process.stop(syscall.SIGKILL) // at once: the data are thrown away
		stopMapper()
	}
	return s, nil
}

func listening(port string) func(context.Context) error {
	return func(ctx context.Context) error {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
		if err != nil {
			return err
		}
		return conn.Close()
	}
}

func healthy(check string) func(context.Context) error {
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, check, nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("the broker answers %s", response.Status)
		}
		return nil
	}
}
