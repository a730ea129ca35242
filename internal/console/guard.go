package console

import (
	"context"
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
	// sessionCookie is followed by the port: browsers send cookies to all ports of a host.
	sessionCookie = "worker_console"
	themeCookie   = "worker_console_theme"
	formTokenName = "form_token"

	// maxForm is the size limit of the body of a request, in bytes.
	maxForm = 64 << 10
	// maxWho is the size limit of the name of a user, in bytes.
	maxWho = 64
)

// contentPolicy allows only resources of this server, and no inline code.
const contentPolicy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

type viewer struct {
	Role      role
	Who       string
	LoggedIn  bool
	FormToken string
	Theme     string
	// Client is the address of the connection.
	Client netip.Addr
}

// MayWrite returns whether the viewer may replay, archive and reveal.
func (v viewer) MayWrite() bool { return v.Role == writer }

type viewerKey struct{}

func viewerOf(ctx context.Context) viewer {
	v, _ := ctx.Value(viewerKey{}).(viewer)
	return v
}

// guard checks requests before the pages: the host name, the viewer and, for changes, that the form is from the console.
func (c *Console) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "same-origin") // no-referrer would make the Origin of forms null
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)

		if !c.access.needsLogin() && !c.access.ReadsWithoutLogin(r) {
			c.fail(w, r, refusal{http.StatusMisdirectedRequest, "Without a token, the console is served only under the name localhost, " +
				"to prevent access by other sites through DNS. Behind a proxy, set --console-token."})
			return
		}
		v := c.viewer(r)
		r = r.WithContext(context.WithValue(r.Context(), viewerKey{}, v))
		if err := c.check(w, r, v, next); err != nil {
			c.fail(w, r, err)
		}
	})
}

// check passes the request of a viewer on, or refuses it.
func (c *Console) check(w http.ResponseWriter, r *http.Request, v viewer, next http.Handler) error {
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		return refusal{http.StatusForbidden, "This request came from another site, and is refused."}
	}
	if !isText(r.URL.Path) || !isTextForm(r.URL.Query()) {
		return refusal{http.StatusBadRequest, "The address of this page is not valid text."}
	}
	open := r.URL.Path == "/login" || strings.HasPrefix(r.URL.Path, "/assets/") || r.URL.Path == "/theme"
	if v.Role == nobody && !open {
		if r.Method == http.MethodGet && !strings.HasPrefix(r.URL.Path, "/live/") {
			return redirect(w, r, loginPath(r.URL.RequestURI()))
		}
		return refusal{http.StatusUnauthorized, "You are not signed in, or your session has ended."}
	}
	if r.Method == http.MethodPost {
		if !same(unmasked(formToken(w, r)), v.FormToken) {
			return refusal{http.StatusForbidden, "The form is from an earlier session. Go back, reload the page, and try again."}
		}
		if !isTextForm(r.PostForm) {
			return refusal{http.StatusBadRequest, "The form does not contain valid text."}
		}
		if !open && r.URL.Path != "/logout" && !v.MayWrite() {
			return mayOnlyRead()
		}
	}
	next.ServeHTTP(w, r)
	return nil
}

func mayOnlyRead() refusal {
	return refusal{http.StatusForbidden, "You may only read. Changes need the role writer (--console-write or --console-write-token)."}
}

// formToken parses a form, and returns its token. As the request is complete then, it resets the read deadline, which would
// end the context of the response.
func formToken(w http.ResponseWriter, r *http.Request) string {
	token := r.PostFormValue(formTokenName)
	if token == "" || http.NewResponseController(w).SetReadDeadline(time.Time{}) != nil {
		return ""
	}
	return token
}

// isText returns whether values can be query parameters of a store: UTF-8 without NUL.
func isText(values ...string) bool {
	return !slices.ContainsFunc(values, func(s string) bool { return !utf8.ValidString(s) || strings.ContainsRune(s, 0) })
}

func isTextForm(form url.Values) bool {
	return isText(slices.Concat(slices.Collect(maps.Values(form))...)...)
}

// isLocalName returns whether a Host header is localhost or a loopback address.
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
	v := viewer{Theme: themeOf(r), Client: clientOf(r), FormToken: c.formToken}
	if !c.access.needsLogin() {
		v.Role, v.Who = c.access.anonymous(), "local user"
	} else if s, ok := c.sessions.get(cookieOf(r, sessionCookieOf(r)), time.Now()); ok {
		v.Role, v.Who, v.FormToken, v.LoggedIn = s.Role, s.Who, c.sessions.formToken(s), true
	}
	return v
}

// sessionCookieOf returns the name of the cookie for the port in the address of a request.
func sessionCookieOf(r *http.Request) string {
	if _, port, err := net.SplitHostPort(r.Host); err == nil {
		return sessionCookie + "_" + port
	}
	return sessionCookie
}

// cookieOf returns the value of a cookie, "" if there is none.
func cookieOf(r *http.Request, name string) string {
	cookie, err := r.Cookie(name)
	if err != nil {
		return ""
	}
	return cookie.Value
}

// clientOf returns the address of the connection. Headers with other addresses can be forged.
func clientOf(r *http.Request) netip.Addr {
	peer, _ := netip.ParseAddrPort(r.RemoteAddr)
	return peer.Addr()
}

// loginPath returns the address of the login, with the page to continue with.
func loginPath(next string) string {
	if next == "/" {
		return "/login"
	}
	return "/login?" + url.Values{"next": {next}}.Encode()
}

func (c *Console) login(w http.ResponseWriter, r *http.Request) error {
	next := ownPath(r.FormValue("next"))
	if viewerOf(r.Context()).Role != nobody {
		return redirect(w, r, next)
	}
	return c.render(w, r, http.StatusOK, "login", "Sign in", loginPage{Next: next})
}

type loginPage struct{ Who, Problem, Next string }

func (c *Console) logIn(w http.ResponseWriter, r *http.Request) error {
	v, now := viewerOf(r.Context()), time.Now()
	who, next := cleanName(r.PostFormValue("who")), ownPath(r.PostFormValue("next"))
	again := func(status int, problem string) error {
		return c.render(w, r, status, "login", "Sign in", loginPage{Who: who, Problem: problem, Next: next})
	}
	if who == "" {
		return again(http.StatusUnprocessableEntity, "Enter your name: your actions are logged with it.")
	}
	if wait := c.throttle.try(v.Client, now); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait.Seconds())+1))
		return again(http.StatusTooManyRequests, "Too many failed attempts. Wait a minute, then try again.")
	}
	given := c.access.roleOf(r.PostFormValue("token"))
	if given == nobody {
		c.logger.WarnContext(r.Context(), "console: a login failed", "who", who, "client", v.Client.String())
		return again(http.StatusUnauthorized, "The token is wrong.")
	}
	c.throttle.passed(v.Client)
	cookie, err := c.sessions.begin(given, who, now)
	if err != nil {
		return err
	}
	setCookie(w, r, sessionCookieOf(r), cookie, sessionAge)
	c.logger.InfoContext(r.Context(), "console: logged in", "who", who, "role", string(given), "client", v.Client.String())
	return redirect(w, r, next)
}

// cleanName returns a name that is safe to log.
func cleanName(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.TrimSpace(strings.ToValidUTF8(s, "")))
	return strings.ToValidUTF8(s[:min(len(s), maxWho)], "")
}

func (c *Console) logOut(w http.ResponseWriter, r *http.Request) error {
	name := sessionCookieOf(r)
	c.sessions.end(cookieOf(r, name), time.Now())
	setCookie(w, r, name, "", -1)
	return redirect(w, r, "/login")
}

// setCookie sets a cookie for requests of this site and for links to it, for example in an alert: a GET changes nothing. The
// cookie is Secure over TLS. A forged X-Forwarded-Proto can only prevent that the cookie is sent.
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

const themeAge = 365 * 24 * time.Hour

func (c *Console) theme(w http.ResponseWriter, r *http.Request) error {
	if chosen := r.PostFormValue("theme"); chosen == "light" || chosen == "dark" {
		setCookie(w, r, themeCookie, chosen, themeAge)
	} else {
		setCookie(w, r, themeCookie, "", -1)
	}
	return redirect(w, r, ownPath(r.PostFormValue("back")))
}

// ownPath returns the target of a form if it is on this site, else the overview. Browsers treat \ as /, and ignore control
// characters; url.Parse refuses the latter.
func ownPath(back string) string {
	u, err := url.Parse(back)
	if err != nil || u.Scheme != "" || u.Host != "" || !strings.HasPrefix(back, "/") || strings.Contains(back, `\`) {
		return "/"
	}
	return back
}

func themeOf(r *http.Request) string {
	if theme := cookieOf(r, themeCookie); theme == "light" || theme == "dark" {
		return theme
	}
	return ""
}

func redirect(w http.ResponseWriter, r *http.Request, to string) error {
	http.Redirect(w, r, to, http.StatusSeeOther)
	return nil
}
