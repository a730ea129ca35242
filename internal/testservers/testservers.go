// Package testservers gives tests real servers: a fresh Postgres database or a fresh RabbitMQ vhost of the test's own,
// gone when the test ends, so that tests run in parallel and in any order.
//
// The servers are those named by DATABASE_URL, RABBITMQ_URL and RABBITMQ_MANAGEMENT_URL (by default port 15672 of
// RABBITMQ_URL's host, with its credentials).
//
// A package that needs servers calls [Main] from its TestMain.
package testservers

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// cleanupTimeout bounds the removal of one test's database or vhost.
const cleanupTimeout = 30 * time.Second

// Main runs the package's tests and exits with their code. TestMain calls it and does nothing else.
func Main(m *testing.M) {
	os.Exit(m.Run())
}

// Postgres returns the URL of an empty database of the test's own. It is dropped when the test ends, whoever is still
// connected to it.
func Postgres(t testing.TB) string {
	t.Helper()
	server := postgresServer(t)
	name := uniqueName()
	execute(t.Context(), t, server, `CREATE DATABASE "`+name+`" TEMPLATE template0`)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), cleanupTimeout)
		defer cancel()
		execute(ctx, t, server, `DROP DATABASE "`+name+`" WITH (FORCE)`)
	})

	database, err := url.Parse(server)
	if err != nil {
		t.Fatal("DATABASE_URL is not a URL")
	}
	database.Path = "/" + name
	return database.String()
}

// RabbitMQ returns the AMQP URL of a vhost of the test's own. It is deleted when the test ends, with its queues and the
// connections to it.
func RabbitMQ(t testing.TB) string {
	t.Helper()
	broker := rabbitMQServer(t)
	name := uniqueName()
	call(t.Context(), t, http.MethodPut, broker.management+"/api/vhosts/"+name, "{}")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), cleanupTimeout)
		defer cancel()
		call(ctx, t, http.MethodDelete, broker.management+"/api/vhosts/"+name, "")
	})

	vhost, err := url.Parse(broker.amqp)
	if err != nil {
		t.Fatal("RABBITMQ_URL is not a URL")
	}
	call(t.Context(), t, http.MethodPut,
		broker.management+"/api/permissions/"+name+"/"+url.PathEscape(vhost.User.Username()),
		`{"configure":".*","write":".*","read":".*"}`)
	vhost.Path = "/" + name
	return vhost.String()
}

// RabbitMQManagement returns the base URL of the management API, credentials included; its paths begin with /api/.
func RabbitMQManagement(t testing.TB) string {
	t.Helper()
	return rabbitMQServer(t).management
}

// broker is a RabbitMQ server's two addresses.
type broker struct {
	amqp       string
	management string
}

func postgresServer(t testing.TB) string {
	t.Helper()
	server := os.Getenv("DATABASE_URL")
	if server == "" {
		t.Fatal("set DATABASE_URL to a Postgres server on which databases may be created")
	}
	return server
}

func rabbitMQServer(t testing.TB) broker {
	t.Helper()
	amqp := os.Getenv("RABBITMQ_URL")
	if amqp == "" {
		t.Fatal("set RABBITMQ_URL to a RabbitMQ server on which vhosts may be created")
	}
	management, err := managementURL(amqp, os.Getenv("RABBITMQ_MANAGEMENT_URL"))
	if err != nil {
		t.Fatal(err)
	}
	return broker{amqp: amqp, management: management}
}

// managementURL completes the management API's URL from the AMQP URL: address (where there is none) and credentials.
func managementURL(amqp, management string) (string, error) {
	broker, err := url.Parse(amqp)
	if err != nil {
		return "", fmt.Errorf("RABBITMQ_URL is not a URL")
	}
	if management == "" {
		management = "http://" + broker.Hostname() + ":15672"
	}
	api, err := url.Parse(management)
	if err != nil {
		return "", fmt.Errorf("RABBITMQ_MANAGEMENT_URL is not a URL")
	}
	if api.User == nil {
		api.User = broker.User
	}
	return strings.TrimSuffix(api.String(), "/"), nil
}

func uniqueName() string { return "test_" + strings.ToLower(rand.Text()) }

func execute(ctx context.Context, t testing.TB, server, statement string) {
	t.Helper()
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		t.Fatalf("connect to the tests' Postgres: %v", err)
	}
	_, err = conn.Exec(ctx, statement)
	if closeErr := conn.Close(ctx); err == nil {
		err = closeErr
	}
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func call(ctx context.Context, t testing.TB, method, target, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, method, target, bytes.NewBufferString(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatalf("call the tests' RabbitMQ: %v", err)
	}
	defer response.Body.Close()
	if response.StatusCode >= 300 {
		reason, _ := io.ReadAll(response.Body)
		t.Fatalf("%s %s: %s: %s", method, request.URL.Redacted(), response.Status, reason)
	}
}
