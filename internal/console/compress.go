package console

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
)

// minCompressed is the size from which on a response is compressed, in bytes.
const minCompressed = 1 << 10

// compressed returns content as gzip.
func compressed(content []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(content) // a buffer takes everything
	_ = w.Close()
	return out.Bytes()
}

func acceptsGzip(r *http.Request) bool {
	for coding := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		name, quality, _ := strings.Cut(strings.TrimSpace(coding), ";")
		if strings.EqualFold(strings.TrimSpace(name), "gzip") && strings.ReplaceAll(quality, " ", "") != "q=0" {
			return true
		}
	}
	return false
}

// respond sends a page, compressed if the client accepts that.
func respond(w http.ResponseWriter, r *http.Request, status int, content []byte) {
	w.Header().Set("Vary", "Accept-Encoding")
	if len(content) >= minCompressed && acceptsGzip(r) {
		w.Header().Set("Content-Encoding", "gzip")
		content = compressed(content)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	w.WriteHeader(status)
	_, _ = w.Write(content) // the client has disconnected
}

// masked returns a form token that differs in each response. The length of a compressed page would otherwise tell parts of the
// token to a site that can add text to the page (BREACH).
func masked(token string) string {
	pad := make([]byte, len(token))
	_, _ = rand.Read(pad) // never fails
	return base64.RawURLEncoding.EncodeToString(append(pad, xor(pad, []byte(token))...))
}

// unmasked returns the token of a masked one, "" if it is none.
func unmasked(text string) string {
	both, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(both)%2 != 0 {
		return ""
	}
	return string(xor(both[:len(both)/2], both[len(both)/2:]))
}

func xor(a, b []byte) []byte {
	out := make([]byte, len(a))
	for i := range a {
		out[i] = a[i] ^ b[i]
	}
	return out
}

// asset is a file of the console.
type asset struct {
	content, compressed []byte
	mediaType, version  string
}

// readAssets reads the files. Their addresses contain the version, which is a hash, so that browsers may keep them.
func readAssets(files fs.FS) (map[string]asset, error) {
	names, err := fs.Glob(files, "*")
	if err != nil {
		return nil, err
	}
	assets := make(map[string]asset, len(names))
	for _, name := range names {
		content, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("read an asset of the console: %w", err)
		}
		hash := sha256.Sum256(content)
		assets[name] = asset{content, compressed(content), mime.TypeByExtension(path.Ext(name)), hex.EncodeToString(hash[:6])}
	}
	return assets, nil
}

func (c *Console) asset(w http.ResponseWriter, r *http.Request) error {
	a, found := c.assets[r.PathValue("name")]
	if !found {
		return refusal{http.StatusNotFound, "This page does not exist."}
	}
	h := w.Header()
	h.Set("Content-Type", a.mediaType)
	h.Set("Vary", "Accept-Encoding")
	if r.URL.Query().Get("v") == a.version {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	content := a.content
	if acceptsGzip(r) {
		h.Set("Content-Encoding", "gzip")
		content = a.compressed
	}
	h.Set("Content-Length", strconv.Itoa(len(content)))
	_, _ = w.Write(content) // the client has disconnected
	return nil
}
