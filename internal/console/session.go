package console

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"
)

const (
	// sessionAge is the lifetime of a session.
	sessionAge = 12 * time.Hour
	// keyRounds is the work to derive the key of sessions from the tokens, against guessing a token from a cookie.
	keyRounds = 600_000
)

// session is what the cookie of a user contains, signed.
type session struct {
	ID      string    `json:"id"`
	Role    role      `json:"role"`
	Who     string    `json:"who"`
	Expires time.Time `json:"expires"`
}

// sessions signs and checks cookies. Its key is derived from the settings, so that a session is valid after a restart and for
// each worker with the same settings, and ends when they change. It is safe for concurrent use.
type sessions struct {
	key []byte

	mu    sync.Mutex
	ended map[string]time.Time // those signed out here, until they expire
}

func newSessions(a Access) (*sessions, error) {
	key := []byte(rand.Text()) // without tokens there are no sessions
	if a.needsLogin() {
		tokens, err := json.Marshal([]any{a.Token, a.WriteToken, a.Write})
		if err != nil {
			return nil, err
		}
		if key, err = pbkdf2.Key(sha256.New, string(tokens), []byte("worker console session"), keyRounds, sha256.Size); err != nil {
			return nil, fmt.Errorf("derive the key of sessions: %w", err)
		}
	}
	return &sessions{key: key, ended: map[string]time.Time{}}, nil
}

// mac returns the code of a text for a purpose.
func (l *sessions) mac(purpose, text string) string {
	code := hmac.New(sha256.New, l.key)
	code.Write([]byte(purpose + "\n" + text))
	return base64.RawURLEncoding.EncodeToString(code.Sum(nil))
}

// begin returns the cookie of a new session.
func (l *sessions) begin(of role, who string, now time.Time) (cookie string, err error) {
	content, err := json.Marshal(session{ID: rand.Text(), Role: of, Who: who, Expires: now.Add(sessionAge)})
	if err != nil {
		return "", fmt.Errorf("encode a session: %w", err)
	}
	text := base64.RawURLEncoding.EncodeToString(content)
	return text + "." + l.mac("session", text), nil
}

// get returns the session of a cookie.
func (l *sessions) get(cookie string, now time.Time) (s session, valid bool) {
	text, code, _ := strings.Cut(cookie, ".")
	if !hmac.Equal([]byte(code), []byte(l.mac("session", text))) {
		return session{}, false
	}
	content, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || json.Unmarshal(content, &s) != nil || !now.Before(s.Expires) {
		return session{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ended := l.ended[s.ID]
	return s, !ended
}

// formToken is the token of the forms of a session, against cross-site requests.
func (l *sessions) formToken(s session) string { return l.mac("form", s.ID) }

// end ends a session at this worker. Others accept its cookie until it expires: it is deleted in the browser.
func (l *sessions) end(cookie string, now time.Time) {
	s, valid := l.get(cookie, now)
	if !valid {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.ended, func(_ string, expires time.Time) bool { return !now.Before(expires) })
	l.ended[s.ID] = s.Expires
}
