package console

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
)

// MinTokenLength is the minimum length of a token, in bytes.
const MinTokenLength = 16

// ErrNotServed says that the console has no token, and its address is not a loopback address.
var ErrNotServed = errors.New("without a token, the console is served only on loopback addresses")

// Access says who may use the console.
type Access struct {
	// Token gives the role reader. WriteToken gives the role writer, which may also replay, archive and reveal. Without both
	// there is no login, and the console is served only on loopback addresses.
	Token, WriteToken string
	// Write gives all readers the role writer.
	Write bool
	// Open serves it on any address, also without a token.
	Open bool
}

// Check validates the tokens. Its error does not contain them.
func (a Access) Check() error {
	var problems []error
	for name, token := range map[string]string{"console-token": a.Token, "console-write-token": a.WriteToken} {
		if token != "" && len(token) < MinTokenLength {
			problems = append(problems, fmt.Errorf("%s must have at least %d characters", name, MinTokenLength))
		}
	}
	if a.Token != "" && a.Token == a.WriteToken {
		problems = append(problems, errors.New("console-token and console-write-token must differ"))
	}
	return errors.Join(problems...)
}

// CheckAddress returns [ErrNotServed] if the console must not be served on the address, which may be unknown (nil).
func (a Access) CheckAddress(listening net.Addr) error {
	if a.Open || a.needsLogin() || isLoopback(listening) {
		return nil
	}
	return ErrNotServed
}

func isLoopback(address net.Addr) bool {
	if address == nil {
		return false
	}
	parsed, err := netip.ParseAddrPort(address.String())
	return err == nil && parsed.Addr().Unmap().IsLoopback()
}

// needsLogin returns whether users have to log in.
func (a Access) needsLogin() bool { return a.Token != "" || a.WriteToken != "" }

// ReadsWithoutLogin returns whether a request may read what the console shows, without a session.
func (a Access) ReadsWithoutLogin(r *http.Request) bool {
	return !a.needsLogin() && isLocalName(r.Host)
}

// role is what a viewer may do.
type role string

const (
	nobody role = ""
	reader role = "reader"
	writer role = "writer"
)

// anonymous returns the role of viewers without a login.
func (a Access) anonymous() role {
	switch {
	case a.needsLogin():
		return nobody
	case a.Write:
		return writer
	default:
		return reader
	}
}

// roleOf returns the role of a token, in constant time.
func (a Access) roleOf(token string) role {
	given := nobody
	if same(token, a.Token) {
		given = reader
		if a.Write {
			given = writer
		}
	}
	if same(token, a.WriteToken) {
		given = writer
	}
	return given
}

// same compares in constant time. An empty token equals nothing.
func same(given, token string) bool {
	a, b := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1 && token != ""
}
