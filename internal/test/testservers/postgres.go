package testservers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/jackc/pgx/v5"

	"github.com/healz/worker/internal/test/posix"
)

// startPostgres starts a Postgres server, or a standby of the one that the environment names. Its data do not outlive it.
func startPostgres(ctx context.Context, dir string, durable bool) (*server, error) {
	creator, err := initdb().find(ctx)
	if err != nil {
		return nil, err
	}
	account, err := unprivileged(dir)
	if err != nil {
		return nil, err
	}
	posix.NewRoot(account, root())
	home := inRoot(dir) // as the server sees it
	data := filepath.Join(home, "data")

	create := exec.CommandContext(ctx, creator, "--pgdata", data, "--username", "postgres", "--auth", "trust",
		"--encoding", "UTF8", "--no-locale", "--no-sync")
	if primary := os.Getenv(behindVariable); primary != "" {
		create = exec.CommandContext(ctx, filepath.Join(filepath.Dir(creator), "pg_basebackup"), "--pgdata", data,
			"--dbname", primary, "--write-recovery-conf", "--checkpoint=fast", "--no-sync")
	}
	create.Dir, create.Env, create.SysProcAttr = home, environment(home), account
	if output, err := create.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("create a Postgres cluster: %w\n%s", err, output)
	}

	certificates := filepath.Join(dir, "certificates")
	if err := writeCertificates(certificates); err != nil {
		return nil, err
	}
	if err := give(certificates, account); err != nil {
		return nil, err
	}
	ports, err := freePorts(ctx, 1)
	if err != nil {
		return nil, err
	}
	port := ports[0]
	arguments := []string{
		"-D", data, "-h", "127.0.0.1", "-p", port, "-k", "", "-c", "ssl=on",
		"-c", "ssl_cert_file=" + filepath.Join(inRoot(certificates), serverFile),
		"-c", "ssl_key_file=" + filepath.Join(inRoot(certificates), serverKey),
	}
	if durable {
		arguments = append(arguments, "-c", "max_connections=100")
	} else {
		arguments = append(arguments, "-c", "max_connections=300", "-c", "fsync=off", "-c", "full_page_writes=off")
	}
	address := "postgres://postgres@127.0.0.1:" + port + "/postgres?sslmode=disable"
	s := &server{
		settings: map[string]string{databaseURL: address, databaseCertificates: certificates},
		gentle:   syscall.SIGINT, // the fast one, which does not wait for clients
		start: func(ctx context.Context) (*process, error) {
			command := exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(filepath.Dir(creator), "postgres"),
				arguments...)
			// A copy, since startProcess changes it.
			command.Dir, command.Env, command.SysProcAttr = home, environment(home), new(*account)
			return startReady(ctx, command, dir, syscall.SIGQUIT, func(ctx context.Context) error {
				conn, err := pgx.Connect(ctx, address)
				if err != nil {
					return err
				}
				defer conn.Close(ctx)
				var own bool // or another's, that took the port before
				err = conn.QueryRow(ctx, "SELECT current_setting('data_directory') = $1", data).Scan(&own)
				if err == nil && !own {
					err = errors.New("another server has the port")
				}
				return err
			})
		},
	}
	if s.process, err = s.start(ctx); err != nil {
		return nil, err
	}
	s.stop = func() { s.process.stop(syscall.SIGQUIT) } // at once: the data are thrown away
	return s, nil
}

// give makes a folder and the files in it the account's.
func give(dir string, account *syscall.SysProcAttr) error {
	uid, gid, set := posix.Account(account)
	if !set {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, uid, gid)
	})
}

// unprivileged returns the attributes of a process that may run Postgres, which refuses root, and gives it dir.
func unprivileged(dir string) (*syscall.SysProcAttr, error) {
	if os.Getuid() != 0 {
		return &syscall.SysProcAttr{}, nil
	}
	name := "postgres"
	if _, err := user.Lookup(name); err != nil || root() != "" { // where its number may be another
		name = "nobody"
	}
	account, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("find an account to run Postgres: %w", err)
	}
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("user id of %s: %w", name, err)
	}
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("group id of %s: %w", name, err)
	}
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		return nil, fmt.Errorf("give the server's folder to %s: %w", name, err)
	}
	return posix.As(uint32(uid), uint32(gid)), nil
}

// environment is what a server gets of this process's environment: nothing that could change its settings.
func environment(home string, more ...string) []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home, "LC_ALL=C"}, more...)
}
