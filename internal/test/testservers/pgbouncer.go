package testservers

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

func pgBouncer() program {
	return program{name: "pgbouncer", places: []string{"/usr/sbin/pgbouncer"}, pkg: "pgbouncer", advice: "install pgbouncer"}
}

// PGBouncer returns the URL of the database through a pgbouncer of the test's own, whose pool_mode is "session" or
// "transaction".
func PGBouncer(t testing.TB, database, mode string) string {
	t.Helper()
	if !private.allowed {
		t.Fatal("a package that needs test servers must have: func TestMain(m *testing.M) { testservers.Main(m) }")
	}
	s, err := startSupervisor(t.Context(), kindPGBouncer, false,
		behindVariable+"="+database, poolModeVariable+"="+mode, rootVariable+"=") // always this system's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if output, err := os.ReadFile(s.log); t.Failed() {
			t.Logf("pgbouncer: %s %v", output, err)
		}
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	return s.settings[databaseURL]
}

func startPGBouncer(ctx context.Context, dir string, _ bool) (*server, error) {
	program, err := pgBouncer().find(ctx)
	if err != nil {
		return nil, err
	}
	address, err := url.Parse(os.Getenv(behindVariable))
	if err != nil {
		return nil, fmt.Errorf("%s is not a URL", behindVariable)
	}
	account, err := unprivileged(dir)
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(ctx, 1)
	if err != nil {
		return nil, err
	}
	password, _ := address.User.Password()
	config, users := filepath.Join(dir, "pgbouncer.ini"), filepath.Join(dir, "users.txt")
	for path, content := range map[string]string{
		config: "[databases]\n* = host=" + address.Hostname() + " port=" + address.Port() + "\n" +
			"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = " + ports[0] + "\nunix_socket_dir =\n" +
			"auth_type = trust\nauth_file = " + users + "\nauth_user = " + address.User.Username() + "\n" +
			"server_login_retry = 1\n" +
			"pool_mode = " + os.Getenv(poolModeVariable) + "\ndefault_pool_size = 40\nmax_client_conn = 2000\n",
		users: fmt.Sprintf("%q %q\n", address.User.Username(), password),
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return nil, fmt.Errorf("write the settings of pgbouncer: %w", err)
		}
	}
	if err := give(dir, account); err != nil {
		return nil, err
	}
	address.Host = net.JoinHostPort("127.0.0.1", ports[0])
	s := &server{
		settings: map[string]string{databaseURL: address.String()},
		start: func(ctx context.Context) (*process, error) {
			command := exec.CommandContext(context.WithoutCancel(ctx), program, config)
			command.Dir, command.Env, command.SysProcAttr = dir, environment(dir), new(*account) // startProcess changes it
			return startReady(ctx, command, dir, syscall.SIGKILL, listening(ports[0]))
		},
	}
	if s.process, err = s.start(ctx); err != nil {
		return nil, err
	}
	s.stop = func() { s.process.stop(syscall.SIGKILL) }
	return s, nil
}
