// Package testservers gives tests real servers: a fresh Postgres database or a fresh RabbitMQ vhost of the test's own,
// gone when the test ends, so that tests run in parallel and in any order.
//
// The servers are those named by DATABASE_URL, RABBITMQ_URL and RABBITMQ_MANAGEMENT_URL (by default port 15672 of
// RABBITMQ_URL's host, with its credentials). Where they are not set, the first test that asks starts a private server
// on 127.0.0.1 in a temporary folder; a machine that lacks the program gets it from Debian's packages, if it is Debian
// and the user is root. A private server is supervised by a process of its own, which stops it and removes its folder
// as soon as the test process ends, however it ends.
//
// A package that needs servers calls [Main] from its TestMain. The command with-servers starts both once for many
// packages.
package testservers

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// The settings by which a test process is told of servers that already run.
const (
	databaseURL   = "DATABASE_URL"
	rabbitMQURL   = "RABBITMQ_URL"
	managementURL = "RABBITMQ_MANAGEMENT_URL"
)

// Further settings of the private servers, of which with-servers tells the tests.
const (
	rabbitMQTLSPort      = "TESTSERVERS_RABBITMQ_TLS_PORT"
	rabbitMQCertificates = "TESTSERVERS_RABBITMQ_CERTIFICATES"
	databaseCertificates = "TESTSERVERS_DATABASE_CERTIFICATES"
	rabbitMQNode         = "TESTSERVERS_RABBITMQ_NODE"
	rabbitMQMapperPort   = "TESTSERVERS_RABBITMQ_MAPPER_PORT"
)

// cleanupTimeout bounds the removal of one test's database or vhost.
const cleanupTimeout = 30 * time.Second

// Main runs the package's tests, stops the servers that they made it start, and exits with the tests' code. TestMain
// calls it and does nothing else.
func Main(m *testing.M) {
	Supervise()
	private.allow()
	code := m.Run()
	if err := private.stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = cmp.Or(code, 1)
	}
	os.Exit(code)
}

// Postgres returns the URL of an empty database of the test's own. It is dropped when the test ends, whoever is still
// connected to it.
func Postgres(t testing.TB) string {
	t.Helper()
	server := os.Getenv(databaseURL)
	if server == "" {
		server = private.settings(t, kindPostgres)[databaseURL]
	}
	database, err := url.Parse(server)
	if err != nil {
		t.Fatal(databaseURL + " is not a URL")
	}

	name := uniqueName()
	execute(t.Context(), t, server, `CREATE DATABASE "`+name+`" TEMPLATE template0`)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), cleanupTimeout)
		defer cancel()
		execute(ctx, t, server, `DROP DATABASE "`+name+`" WITH (FORCE)`)
	})

	database.Path = "/" + name
	return database.String()
}

// RabbitMQ returns the AMQP URL of a vhost of the test's own. It is deleted when the test ends, with its queues and the
// connections to it.
func RabbitMQ(t testing.TB) string {
	t.Helper()
	broker, management := rabbitMQ(t)

	name := uniqueName()
	vhost := management.JoinPath("api/vhosts", name)
	call(t.Context(), t, http.MethodPut, vhost, "{}")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), cleanupTimeout)
		defer cancel()
		call(ctx, t, http.MethodDelete, vhost, "")
	})
	call(t.Context(), t, http.MethodPut, management.JoinPath("api/permissions", name, broker.User.Username()),
		`{"configure":".*","write":".*","read":".*"}`)

	broker.Path = "/" + name
	return broker.String()
}

// RabbitMQManagement returns the base URL of the management API, credentials included and without a slash at its end:
// its paths begin with /api/.
func RabbitMQManagement(t testing.TB) string {
	t.Helper()
	_, management := rabbitMQ(t)
	return strings.TrimSuffix(management.String(), "/")
}

// MaxMessageSize returns how many bytes the body of a message may have by the defaults of the broker's version.
func MaxMessageSize(t testing.TB) int {
	t.Helper()
	_, management := rabbitMQ(t)
	var overview struct {
		Version string `json:"rabbitmq_version"`
	}
	if err := json.Unmarshal(call(t.Context(), t, http.MethodGet, management.JoinPath("api/overview"), ""), &overview); err != nil {
		t.Fatalf("read the version of the tests' RabbitMQ: %v", err)
	}
	major, _, _ := strings.Cut(overview.Version, ".")
	if version, err := strconv.Atoi(major); err != nil || version >= 4 {
		return 16 << 20
	}
	return 128 << 20
}

// PostgresTLS returns what [Postgres] does, to be reached over TLS only, and the folder of its certificates: ca.pem,
// client.pem and client.key, and of another authority other-ca.pem, other-client.pem and other-client.key. The server's
// certificate is for 127.0.0.1. The test is skipped on a server that the environment names.
func PostgresTLS(t testing.TB) (database, certificates string) {
	t.Helper()
	database = Postgres(t)
	certificates = tlsSetting(t, kindPostgres, databaseURL, databaseCertificates)
	return strings.Replace(database, "sslmode=disable", "sslmode=verify-full", 1), certificates
}

// RabbitMQTLS returns what [RabbitMQ] does as an amqps URL; else it is as [PostgresTLS]. The broker lets in only clients
// that have a certificate.
func RabbitMQTLS(t testing.TB) (broker, certificates string) {
	t.Helper()
	address, err := url.Parse(RabbitMQ(t))
	if err != nil {
		t.Fatal(rabbitMQURL + " is not a URL")
	}
	address.Scheme = "amqps"
	address.Host = net.JoinHostPort("127.0.0.1", tlsSetting(t, kindRabbitMQ, rabbitMQURL, rabbitMQTLSPort))
	return address.String(), tlsSetting(t, kindRabbitMQ, rabbitMQURL, rabbitMQCertificates)
}

func tlsSetting(t testing.TB, k kind, server, setting string) string {
	t.Helper()
	if os.Getenv(server) == "" {
		return private.settings(t, k)[setting]
	}
	if os.Getenv(setting) == "" {
		Skip(t, "the server that "+server+" names may have no TLS")
	}
	return os.Getenv(setting)
}

// Skip skips a test for which this machine or the servers that the environment names lack something. Where
// TESTSERVERS_NO_SKIPS is set, as in CI, the test fails instead.
func Skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("TESTSERVERS_NO_SKIPS") != "" {
		t.Fatal("may not be skipped: " + reason)
	}
	t.Skip(reason) //nolint:forbidigo // the one place
}

// rabbitMQ returns the addresses of the broker and of its management API.
func rabbitMQ(t testing.TB) (broker, management *url.URL) {
	t.Helper()
	settings := map[string]string{
		rabbitMQURL:   os.Getenv(rabbitMQURL),
		managementURL: os.Getenv(managementURL),
	}
	if settings[rabbitMQURL] == "" {
		settings = private.settings(t, kindRabbitMQ)
	}
	broker, management, err := rabbitMQAddresses(settings)
	if err != nil {
		t.Fatal(err)
	}
	return broker, management
}

func rabbitMQAddresses(settings map[string]string) (broker, management *url.URL, err error) {
	broker, err = url.Parse(settings[rabbitMQURL])
	if err != nil || broker.User == nil {
		return nil, nil, errors.New(rabbitMQURL + " is not a URL with a user")
	}
	management, err = url.Parse(cmp.Or(settings[managementURL], "http://"+broker.Hostname()+":15672"))
	if err != nil {
		return nil, nil, errors.New(managementURL + " is not a URL")
	}
	if management.User == nil {
		management.User = broker.User
	}
	return broker, management, nil
}

func uniqueName() string { return "test_" + strings.ToLower(rand.Text()) }

func execute(ctx context.Context, t testing.TB, server, statement string) {
	t.Helper()
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		t.Fatalf("connect to the tests' Postgres: %v", err)
	}
	_, err = conn.Exec(ctx, statement)
	if err := errors.Join(err, conn.Close(ctx)); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func call(ctx context.Context, t testing.TB, method string, target *url.URL, body string) (answer []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, method, target.String(), strings.NewReader(body))
	if err != nil {
		t.Fatalf("call the tests' RabbitMQ: %v", err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatalf("call the tests' RabbitMQ: %v", err)
	}
	defer response.Body.Close()
	answer, err = io.ReadAll(response.Body)
	if err != nil || response.StatusCode >= http.StatusMultipleChoices {
		t.Fatalf("%s %s: %s: %s, %v", method, target.Redacted(), response.Status, answer, err)
	}
	return answer
}
