package console

import (
	"context"
	"crypto/rand"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	sessionCookie = "worker_console"
	themeCookie   = "worker_console_theme"
	formTokenName = "form_token"

	// maxForm bounds the body of a request, in bytes.
	maxForm = 64 << 10
	// maxWho bounds the name under which one logs in, in bytes.
	maxWho = 64
)

// contentPolicy lets a page use what this server serves, and nothing inline.
const contentPolicy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// viewer is who looks at a page.
type viewer struct {
	Role      role
	Who       string
	LoggedIn  bool
	FormToken string
	Theme     string
	// Client is the address that the request came from.
	Client netip.Addr
}

// MayWrite tells whether the viewer may replay, archive and reveal.
func (v viewer) MayWrite() bool { return v.Role == writer }

type viewerKey struct{}

func viewerOf(ctx context.Context) viewer {
	v, _ := ctx.Value(viewerKey{}).(viewer)
	return v
}

// guard lets requests through to the pages: those of a known viewer, to the name that the console has, and if they
// change anything from a page of its own.
func (c *Console) guard(next http.Handler) http.Handler {
	crossOrigin := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "same-origin") // with no-referrer a form's Origin is null, which tells nothing
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)

		if !c.access.byToken() && !isLocalName(r.Host) {
			c.refuse(w, r, http.StatusMisdirectedRequest, "The console answers to localhost alone, so that no other site can reach it "+
				"through a name of its own. Behind a proxy, give it a --console-token.")
			return
		}
		v := c.viewer(r)
		r = r.WithContext(context.WithValue(r.Context(), viewerKey{}, v))
		if err := crossOrigin.Check(r); err != nil {
			c.refuse(w, r, http.StatusForbidden, "This came from another site, and is refused.")
			return
		}
		if !isText(r.URL.Path) || !isTextForm(r.URL.Query()) {
			c.refuse(w, r, http.StatusBadRequest, "The address of this page is wrong: it is not text.")
			return
		}
		open := r.URL.Path == "/login" || strings.HasPrefix(r.URL.Path, "/assets/") || r.URL.Path == "/theme"
		if v.Role == nobody && !open {
			if r.Method == http.MethodGet && !strings.HasPrefix(r.URL.Path, "/live/") {
				http.Redirect(w, r, loginPath(r.URL.RequestURI()), http.StatusSeeOther)
				return
			}
			c.refuse(w, r, http.StatusUnauthorized, "You are not signed in, or no longer.")
			return
		}
		if r.Method == http.MethodPost {
			if !same(formToken(w, r), v.FormToken) {
				c.refuse(w, r, http.StatusForbidden, "The form is from an earlier session. Go back, reload the page, and try again.")
				return
			}
			if !isTextForm(r.PostForm) {
				c.refuse(w, r, http.StatusBadRequest, "What the form says is not text.")
				return
			}
			if !open && r.URL.Path != "/logout" && !v.MayWrite() {
				c.refuse(w, r, http.StatusForbidden, "You may look, and change nothing: that takes the write role (--console-write or "+
					"--console-write-token).")
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// formToken reads a form, and returns the token in it. As all is here then, the server's read timeout is lifted, which
// would cut the answer short.
func formToken(w http.ResponseWriter, r *http.Request) string {
	token := r.PostFormValue(formTokenName)
	if token == "" || http.NewResponseController(w).SetReadDeadline(time.Time{}) != nil {
		return ""
	}
	return token
}

// isText tells whether values are text, as a store can be asked for.
func isText(values ...string) bool {
	return !slices.ContainsFunc(values, func(s string) bool { return !utf8.ValidString(s) || strings.ContainsRune(s, 0) })
}

// isTextForm is isText of all values of a form.
func isTextForm(form url.Values) bool {
	return isText(slices.Concat(slices.Collect(maps.Values(form))...)...)
}

// isLocalName tells whether a Host header names this machine to itself.
func isLocalName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	address, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && address.Unmap().IsLoopback()
}

func (c *Console) viewer(r *http.Request) viewer {
	v := viewer{Theme: themeOf(r), Client: clientOf(r)}
	id := "anybody"
	if c.access.byToken() {
		id = "login"
		if s, ok := c.sessionOf(r); ok {
			id, v.Role, v.Who, v.LoggedIn = s.ID, s.Role, s.Who, true
		}
	} else {
		v.Role, v.Who = c.access.anybody(), "local user"
	}
	v.FormToken = c.seal.formToken(id)
	return v
}

func (c *Console) sessionOf(r *http.Request) (session, bool) {
	cookie, err := r.Cookie(sessionCookie)
	if err != nil {
		return session{}, false
	}
	s, ok := c.seal.session(cookie.Value, time.Now())
	return s, ok && !c.left.has(s)
}

// clientOf is the peer of the connection: what headers say of others anybody can write.
func clientOf(r *http.Request) netip.Addr {
	peer, _ := netip.ParseAddrPort(r.RemoteAddr)
	return peer.Addr()
}

// loginPath is where one logs in, to go to a page then.
func loginPath(next string) string {
	if next == "/" {
		return "/login"
	}
	return "/login?" + url.Values{"next": {next}}.Encode()
}

func (c *Console) login(w http.ResponseWriter, r *http.Request) {
	next := ownPath(r.FormValue("next"))
	if viewerOf(r.Context()).Role != nobody {
		http.Redirect(w, r, next, http.StatusSeeOther)
		return
	}
	c.render(w, r, http.StatusOK, "login", "Sign in", loginPage{Next: next})
}

// loginPage is the body of the page to log in.
type loginPage struct{ Who, Problem, Next string }

func (c *Console) logIn(w http.ResponseWriter, r *http.Request) {
	v, now := viewerOf(r.Context()), time.Now()
	who, next := cleanName(r.PostFormValue("who")), ownPath(r.PostFormValue("next"))
	again := func(status int, problem string) {
		c.render(w, r, status, "login", "Sign in", loginPage{Who: who, Problem: problem, Next: next})
	}
	if who == "" {
		again(http.StatusUnprocessableEntity, "Say who you are: what you do here is logged under this name.")
		return
	}
	if wait := c.throttle.try(v.Client, now); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait.Seconds())+1))
		again(http.StatusTooManyRequests, "Too many failed attempts. Wait a minute, then try again.")
		return
	}
	given := c.access.of(r.PostFormValue("token"))
	if given == nobody {
		c.logger.WarnContext(r.Context(), "console: a login failed", "who", who, "client", v.Client.String())
		again(http.StatusUnauthorized, "This is not the token.")
		return
	}
	c.throttle.passed(v.Client)
	s := session{ID: rand.Text(), Role: given, Who: who, Expires: now.Add(sessionAge)}
	setCookie(w, r, sessionCookie, c.seal.cookie(s), sessionAge)
	c.logger.InfoContext(r.Context(), "console: logged in", "who", who, "role", string(given), "client", v.Client.String())
	http.Redirect(w, r, next, http.StatusSeeOther)
}

// cleanName is a name as a log may have it.
func cleanName(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.TrimSpace(strings.ToValidUTF8(s, "")))
	return strings.ToValidUTF8(s[:min(len(s), maxWho)], "")
}

func (c *Console) logOut(w http.ResponseWriter, r *http.Request) {
	if s, ok := c.sessionOf(r); ok {
		c.left.add(s, time.Now())
	}
	setCookie(w, r, sessionCookie, "", -1)
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

// setCookie sets a cookie for this site's own requests, and for links to it: one in an alert leads to its page, which
// changes nothing. It is Secure over TLS, also if only a header says so: that can but keep the cookie from being sent.
func setCookie(w http.ResponseWriter, r *http.Request, name, value string, age time.Duration) {
	seconds := int(age.Seconds())
	if age < 0 {
		seconds = -1
	}
	http.SetCookie(w, &http.Cookie{
		Name: name, Value: value, Path: "/", MaxAge: seconds, HttpOnly: true, SameSite: http.SameSiteLaxMode,
		Secure: r.TLS != nil || strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https"),
	})
}

// themeAge is how long a browser remembers its theme.
const themeAge = 365 * 24 * time.Hour

func (c *Console) theme(w http.ResponseWriter, r *http.Request) {
	if chosen := r.PostFormValue("theme"); chosen == "light" || chosen == "dark" {
		setCookie(w, r, themeCookie, chosen, themeAge)
	} else {
		setCookie(w, r, themeCookie, "", -1)
	}
	http.Redirect(w, r, ownPath(r.PostFormValue("back")), http.StatusSeeOther)
}

// ownPath is where a form leads to, if that is on this site, and the overview if not. Browsers read \ as /, and pass
// over control characters, which have no place in an address either.
func ownPath(back string) string {
	u, err := url.Parse(back)
	if err != nil || u.Scheme != "" || u.Host != "" || !strings.HasPrefix(back, "/") || strings.Contains(back, `\`) {
		return "/"
	}
	return back
}

// themeOf is the theme that was chosen, "" for the system's.
func themeOf(r *http.Request) string {
	cookie, err := r.Cookie(themeCookie)
	if err != nil || cookie.Value != "light" && cookie.Value != "dark" {
		return ""
	}
	return cookie.Value
}

func (c *Console) refuse(w http.ResponseWriter, r *http.Request, status int, problem string) {
	c.render(w, r, status, "problem", http.StatusText(status), problem)
}
