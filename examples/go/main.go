// A complete small peer: a service and a client, as examples/minimal has them in Python.
//
//	peer serve PORT [AUDIENCE URL]               asks that service, too, in the caller's transaction
//	peer call AUDIENCE METHOD URL [BODY]
//	peer sign AUDIENCE METHOD TARGET [BODY]      prints the token
//	peer rotate                                  the next key, from the next start on
//	peer vectors FOLDER                          runs docs/vectors
package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

const (
	maxBody = 1 << 20
	usage   = `usage: peer serve PORT [AUDIENCE URL] | call AUDIENCE METHOD URL [BODY] | sign AUDIENCE METHOD TARGET [BODY] | rotate
       | vectors FOLDER
needs PEERSEAL_SERVICE, PEERSEAL_REGISTRY_URL, and PEERSEAL_JOIN_TOKEN or PEERSEAL_REGISTRY_PIN; keys are in PEERSEAL_KEY_DIR`
)

// counts of arguments that each command takes
var counts = map[string][]int{"serve": {1, 3}, "call": {3, 4}, "sign": {3, 4}, "rotate": {0}, "vectors": {1}}

func main() {
	arguments := append(os.Args[1:], "", "", "", "", "")
	if !slices.Contains(counts[arguments[0]], len(os.Args)-2) {
		wrongUsage("the command, or the number of its arguments")
	}
	var err error
	switch arguments[0] {
	case "vectors":
		os.Exit(runVectors(arguments[1]))
	case "serve":
		err = withIdentity(func(us *Identity) error { return serve(us, arguments[1], arguments[2], arguments[3]) })
	case "call":
		err = withIdentity(func(us *Identity) error {
			told, err := call(us, arguments[1], arguments[2], arguments[3], []byte(arguments[4]), "")
			if err == nil {
				fmt.Println(told)
			}
			return err
		})
	case "sign":
		err = withIdentity(func(us *Identity) error {
			headers := map[string]string{}
			if arguments[4] != "" {
				headers = asJSON
			}
			fmt.Println(us.Sign(arguments[1], arguments[2], arguments[3], []byte(arguments[4]), headers, ""))
			return nil
		})
	case "rotate":
		err = withIdentity(func(us *Identity) error {
			next, err := us.Rotate()
			if err == nil {
				fmt.Println(next.Kid)
			}
			return err
		})
	}
	if err != nil {
		log.Fatal(err)
	}
}

func wrongUsage(reason string) {
	fmt.Fprintf(os.Stderr, "wrong usage: %s\n%s\n", reason, usage)
	os.Exit(2)
}

func withIdentity(do func(us *Identity) error) error {
	pin, joining := os.Getenv("PEERSEAL_REGISTRY_PIN"), os.Getenv("PEERSEAL_JOIN_TOKEN")
	if os.Getenv("PEERSEAL_SERVICE") == "" || os.Getenv("PEERSEAL_REGISTRY_URL") == "" || pin+joining == "" {
		wrongUsage("a variable is not set")
	}
	if pin == "" {
		token, err := parseJoinToken(joining)
		if err != nil {
			return err
		}
		pin = token.Pin
	}
	registry := newRegistry(strings.TrimSuffix(os.Getenv("PEERSEAL_REGISTRY_URL"), "/"), pin)
	folder := cmp.Or(os.Getenv("PEERSEAL_KEY_DIR"), "keys")
	us, err := join(registry, os.Getenv("PEERSEAL_SERVICE"), folder, joining)
	if err != nil {
		return err
	}
	return do(us)
}

// call gives the status and the text of an answer.
func call(us *Identity, audience, method, address string, body []byte, transaction string) (string, error) {
	answer, err := us.Call(audience, method, address, body, transaction)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	told, err := io.ReadAll(answer.Body)
	return fmt.Sprint(answer.StatusCode, " ", string(told)), err
}

// serve answers at that port. With an audience, it also asks that service at that address, in the caller's transaction.
func serve(us *Identity, port, audience, address string) error {
	domain := strings.TrimSuffix(us.ID, us.Service)
	verifier := &Verifier{
		Trust: us.registry, Audience: us.ID, Replay: &ReplayGuard{}, Now: us.registry.Now,
		Allow: map[string][]string{domain + "caller": {"greetings:read"}},
	}
	server := &http.Server{
		Addr: "127.0.0.1:" + port, Handler: protected(verifier, greet(us, audience, address)),
		ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, // a client may be silent, or read nothing
	}
	fmt.Println("Listening at http://" + server.Addr)
	return server.ListenAndServe()
}

// greet is the one route: a greeting, which service asked for it, for which user, and what the next service says.
func greet(us *Identity, audience, address string) handler {
	return func(request *http.Request, caller *Peer, body []byte) (map[string]any, error) {
		hello := cmp.Or(string(body), path.Base(request.URL.Path))
		told, transaction := map[string]any{"hello": hello, "caller": path.Base(caller.ID)}, ""
		if caller.Transaction != nil {
			told["user"], transaction = caller.Transaction.User, caller.Transaction.Token
		}
		if audience == "" {
			return told, nil
		}
		next, err := call(us, audience, "GET", address, nil, transaction)
		if err != nil {
			return nil, refuse("next_unavailable", "%v", err)
		}
		told["next"] = next
		return told, nil
	}
}

type handler func(*http.Request, *Peer, []byte) (map[string]any, error)

// protected lets only verified requests through. A bare handler sees the request line as it came; a ServeMux would
// clean the path first.
func protected(verifier *Verifier, next handler) http.HandlerFunc {
	return func(answer http.ResponseWriter, request *http.Request) {
		token, err := bearerToken(request.Header.Values("Authorization"))
		var caller *Peer
		var content []byte
		if err == nil {
			caller, err = verifier.Verify(token, &Request{
				Method: request.Method, Target: request.RequestURI, Headers: headersOf(request), Scope: "greetings:read",
				Body: func() ([]byte, error) {
					var err error
					content, err = readBody(answer, request)
					return content, err
				},
			})
		}
		var told map[string]any
		if err == nil {
			told, err = next(request, caller, content)
		}
		if err != nil {
			log.Printf("refused %s %q: %v", request.Method, request.RequestURI, err)
			problem := problemOf(codeOf(err))
			for name, value := range problem.Headers {
				answer.Header().Set(name, value)
			}
			answer.WriteHeader(problem.Status)
			answer.Write(problem.Body)
			return
		}
		answer.Header().Set("Content-Type", "application/json")
		answer.Write(canonical(told))
	}
}

// headersOf gives the headers by lower-case names. Go keeps two of them elsewhere, and leaves values as bytes: a token
// binds each byte as a character of latin-1.
func headersOf(request *http.Request) map[string]string {
	headers := map[string]string{}
	if request.Host != "" {
		headers["host"] = request.Host
	}
	if len(request.TransferEncoding) > 0 {
		headers["transfer-encoding"] = strings.Join(request.TransferEncoding, ", ")
	}
	for name, values := range request.Header {
		characters := []rune{}
		for _, octet := range []byte(strings.Join(values, ", ")) {
			characters = append(characters, rune(octet))
		}
		headers[strings.ToLower(name)] = string(characters)
	}
	return headers
}

func readBody(answer http.ResponseWriter, request *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(answer, request.Body, maxBody))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return nil, refuse("content_too_large", "more than %d bytes", maxBody)
	}
	if err != nil {
		return nil, refuse("content_unreadable", "%v", err)
	}
	return body, nil
}
