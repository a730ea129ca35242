package testservers

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// The certificates of a private server, files of a folder. The server's is for 127.0.0.1 only.
const (
	caFile     = "ca.pem"
	serverFile = "server.pem"
	serverKey  = "server.key"
)

// authority signs certificates. Its own is in a file.
type authority struct {
	dir         string
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// writeCertificates fills dir with an authority's certificate, a server's, and a client's (client.pem, client.key), and
// with another authority's (other-ca.pem) and that of a client of it (other-client.pem, other-client.key).
func writeCertificates(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("make the folder of the certificates: %w", err)
	}
	for prefix, server := range map[string]bool{"": true, "other-": false} {
		ca, err := newAuthority(dir, prefix+"ca")
		if err != nil {
			return err
		}
		err = ca.issue(prefix+"client", x509.ExtKeyUsageClientAuth)
		if server {
			err = errors.Join(err, ca.issue(prefix+"server", x509.ExtKeyUsageServerAuth))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func newAuthority(dir, name string) (*authority, error) {
	a := &authority{dir: dir}
	template := certificateOf(name)
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	a.certificate = template
	var err error
	a.key, err = a.sign(name, template)
	return a, err
}

func (a *authority) issue(name string, usage x509.ExtKeyUsage) error {
	template := certificateOf(name)
	template.ExtKeyUsage, template.IPAddresses = []x509.ExtKeyUsage{usage}, []net.IP{net.IPv4(127, 0, 0, 1)}
	key, err := a.sign(name, template)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode a key: %w", err)
	}
	return a.write(name+".key", "PRIVATE KEY", der)
}

func certificateOf(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
}

// sign makes a key and its certificate, signed by the authority, or, if it has no key yet, by itself.
func (a *authority) sign(name string, template *x509.Certificate) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	signer := a.key
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	return key, a.write(name+".pem", "CERTIFICATE", der)
}

func (a *authority) write(name, kind string, der []byte) error {
	content := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(filepath.Join(a.dir, name), content, 0o600); err != nil {
		return fmt.Errorf("write a certificate: %w", err)
	}
	return nil
}
