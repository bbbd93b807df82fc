// Renders a template the way Vault Agent does, without a Vault: Go's own text/template, which Vault Agent (through
// consul-template) executes, with its four functions that the template uses answered from a file.
//
//	go run render.go TEMPLATE ANSWERS
//
// ANSWERS is a JSON object from the paths of Vault's HTTP API, without /v1/, to what is under "data" in Vault's answer:
// to a LIST for paths with /metadata/, to a GET otherwise.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"text/template"
)

// Secret has the field of api.Secret that templates look into.
type Secret struct{ Data map[string]any }

func main() {
	text, err := os.ReadFile(os.Args[1])
	check(err)
	file, err := os.ReadFile(os.Args[2])
	check(err)
	var answers map[string]map[string]any
	check(json.Unmarshal(file, &answers))

	answer := func(path string) (map[string]any, error) {
		if data, ok := answers[path]; ok {
			return data, nil
		}
		return nil, fmt.Errorf("no secret exists at %s", path)
	}
	functions := template.FuncMap{
		"secret": func(path string) (*Secret, error) {
			data, err := answer(path)
			return &Secret{data}, err
		},
		"secrets": func(path string) ([]string, error) {
			data, err := answer(path)
			if err != nil {
				return nil, err
			}
			var keys []string
			for _, key := range data["keys"].([]any) {
				keys = append(keys, key.(string))
			}
			return keys, nil
		},
		"envOrDefault": func(name, fallback string) string {
			if value, ok := os.LookupEnv(name); ok {
				return value
			}
			return fallback
		},
		"toJSON": func(value any) (string, error) {
			text, err := json.Marshal(value)
			return string(text), err
		},
	}
	parsed, err := template.New("").Option("missingkey=error").Funcs(functions).Parse(string(text))
	check(err)
	check(parsed.Execute(os.Stdout, nil))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
