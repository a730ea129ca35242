package console

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
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

// CheckAddress returns [ErrNotServed] if the console must not be served on the address.
func (a Access) CheckAddress(listening net.Addr) error {
	if a.needsLogin() || isLoopback(listening) {
		return nil
	}
	return ErrNotServed
}

func isLoopback(address net.Addr) bool {
	parsed, err := netip.ParseAddrPort(address.String())
	return err == nil && parsed.Addr().Unmap().IsLoopback()
}

// needsLogin returns whether users have to log in.
func (a Access) needsLogin() bool { return a.Token != "" || a.WriteToken != "" }

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

// sessionAge is the lifetime of a session.
const sessionAge = 12 * time.Hour

type session struct {
	ID      string
	Role    role
	Who     string
	Expires time.Time
}

// endedSessions are the sessions that ended by a logout. The zero value is ready; it is safe for concurrent use.
type endedSessions struct {
	mu    sync.Mutex
	until map[string]time.Time
}

// add ends a session.
func (l *endedSessions) add(s session, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.until == nil {
		l.until = map[string]time.Time{}
	}
	maps.DeleteFunc(l.until, func(_ string, until time.Time) bool { return until.Before(now) })
	l.until[s.ID] = s.Expires
}

func (l *endedSessions) has(s session) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ended := l.until[s.ID]
	return ended
}

// seal signs sessions with a key of the process: all sessions end with the process.
type seal struct{ key [32]byte }

func newSeal() seal {
	var s seal
	_, _ = rand.Read(s.key[:]) // it never fails
	return s
}

func (s seal) sum(purpose, text string) string {
	mac := hmac.New(sha256.New, s.key[:])
	mac.Write([]byte(purpose + "\x00" + text))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// cookie returns the signed cookie of a session.
func (s seal) cookie(of session) string {
	encoded, _ := json.Marshal(of) // it never fails
	text := base64.RawURLEncoding.EncodeToString(encoded)
	return text + "." + s.sum("session", text)
}

func (s seal) session(cookie string, now time.Time) (of session, valid bool) {
	text, sum, _ := strings.Cut(cookie, ".")
	if !hmac.Equal([]byte(sum), []byte(s.sum("session", text))) {
		return session{}, false
	}
	encoded, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || json.Unmarshal(encoded, &of) != nil || !now.Before(of.Expires) {
		return session{}, false
	}
	return of, true
}

// formToken returns the token against cross-site requests in the forms of a session.
func (s seal) formToken(sessionID string) string { return s.sum("form", sessionID) }
