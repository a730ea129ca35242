package console

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

// MinTokenLength is the least length of a token, in bytes.
const MinTokenLength = 16

// ErrNotServed says that the console is not served on an address that others can reach, as it has no token.
var ErrNotServed = errors.New("the console is served on loopback addresses alone, unless it has a token")

// Access says who may use the console.
type Access struct {
	// Token lets in readers, and WriteToken those who may also replay, archive and reveal. Without either nobody has to
	// log in, and the console is for loopback addresses alone.
	Token, WriteToken string
	// Write lets all who may read do what writers may.
	Write bool
}

// Check says what is wrong with the tokens. It does not tell them.
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

// CheckAddress is [ErrNotServed] if the console must not be served on the address.
func (a Access) CheckAddress(listening net.Addr) error {
	if a.byToken() || isLoopback(listening) {
		return nil
	}
	return ErrNotServed
}

func isLoopback(address net.Addr) bool {
	parsed, err := netip.ParseAddrPort(address.String())
	return err == nil && parsed.Addr().Unmap().IsLoopback()
}

// byToken tells whether one has to log in.
func (a Access) byToken() bool { return a.Token != "" || a.WriteToken != "" }

// role is what one may do.
type role string

const (
	nobody role = ""
	reader role = "reader"
	writer role = "writer"
)

// anybody is the role of those who need not log in.
func (a Access) anybody() role {
	switch {
	case a.byToken():
		return nobody
	case a.Write:
		return writer
	default:
		return reader
	}
}

// of is the role that a token gives. It takes as long for a wrong one as for a right one.
func (a Access) of(token string) role {
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

// same compares in constant time; no token is the same as none.
func same(given, token string) bool {
	a, b := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1 && token != ""
}

// sessionAge is how long one stays logged in.
const sessionAge = 12 * time.Hour

// session is who is logged in.
type session struct {
	ID      string
	Role    role
	Who     string
	Expires time.Time
}

// leavers are the sessions that were ended before their time. The zero value is ready; it is safe for concurrent use.
type leavers struct {
	mu    sync.Mutex
	until map[string]time.Time
}

// add ends a session.
func (l *leavers) add(s session, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.until == nil {
		l.until = map[string]time.Time{}
	}
	maps.DeleteFunc(l.until, func(_ string, until time.Time) bool { return until.Before(now) })
	l.until[s.ID] = s.Expires
}

func (l *leavers) has(s session) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, left := l.until[s.ID]
	return left
}

// seal signs sessions with a key that is gone when the process ends, and all of them with it.
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

// cookie is the signed text of a session.
func (s seal) cookie(of session) string {
	text := base64.RawURLEncoding.EncodeToString([]byte(strings.Join([]string{
		of.ID, string(of.Role), strconv.FormatInt(of.Expires.Unix(), 10), of.Who,
	}, "\n")))
	return text + "." + s.sum("session", text)
}

// session reads what cookie wrote, unless it has expired.
func (s seal) session(cookie string, now time.Time) (session, bool) {
	text, sum, _ := strings.Cut(cookie, ".")
	if !hmac.Equal([]byte(sum), []byte(s.sum("session", text))) {
		return session{}, false
	}
	decoded, err := base64.RawURLEncoding.DecodeString(text)
	parts := strings.SplitN(string(decoded), "\n", 4)
	if err != nil || len(parts) != 4 {
		return session{}, false
	}
	seconds, err := strconv.ParseInt(parts[2], 10, 64)
	expires := time.Unix(seconds, 0)
	if err != nil || !now.Before(expires) {
		return session{}, false
	}
	return session{ID: parts[0], Role: role(parts[1]), Expires: expires, Who: parts[3]}, true
}

// formToken is what the forms of a session carry, which other sites cannot know.
func (s seal) formToken(sessionID string) string { return s.sum("form", sessionID) }
