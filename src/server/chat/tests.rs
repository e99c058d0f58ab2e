use serde_json::{Value, json};

use super::*;

/// The form of ChatML, as many models have it.
const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}\
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn chat(template: &str) -> Chat {
    Chat::new(TokenizerInfo {
        bos: Some("<s>".into()),
        eos: Some("</s>".into()),
        chat_template: Some(template.into()),
        ..TokenizerInfo::default()
    })
}

fn conversation(messages: Value, variables: Value) -> Conversation {
    let Value::Array(messages) = messages else { panic!("no list") };
    let Value::Object(variables) = variables else { panic!("no object") };
    Conversation { messages, add_generation_prompt: true, variables }
}

fn render(template: &str, messages: Value) -> Result<String, String> {
    let rendered = chat(template).render(&conversation(messages, json!({})));
    rendered.map_err(|error| error.body()["error"]["message"].as_str().unwrap().to_owned())
}

#[test]
fn a_conversation_is_written_out() {
    let messages = json!([{"role": "user", "content": "<Hi> & 'you'"}]);
    assert_eq!(
        render(CHATML, messages).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<Hi> & 'you'<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn what_templates_call_is_there() {
    let messages =
        json!([{"role": "user", "content": " a b "}, {"role": "assistant", "content": "x</think>y"}]);
    for (template, expected) in [
        ("{{ bos_token }}{{ messages[0].content.strip() }}{{ eos_token }}", "<s>a b</s>"),
        ("{{ messages[-1]['content'].split('</think>')[-1] }}", "y"),
        ("{{ messages[1:] | length }}{{ messages[0].role.startswith('us') }}", "1true"),
        (
            "{% for m in messages %}\n  {%- if loop.last %}{% break %}{% endif %}\n{{ m.role }}\n{% endfor %}",
            "user\n",
        ),
        ("{{ {'a': [1, '<é>']} | tojson }}", "{\"a\": [1, \"<é>\"]}"),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        ),
        ("{{ strftime_now('%Y') | length }}{{ tools is defined and tools }}", "4false"),
        ("{% for key, value in messages[0].items() %}{{ key }} {% endfor %}", "content role "),
        ("{%- generation %}{{ messages[0].role }}{% endgeneration -%}\n!", "user!"),
        ("{% macro say(m) %}[{{ m.role }}]{% endmacro %}{{ say(messages[0]) }}", "[user]"),
    ] {
        assert_eq!(render(template, messages.clone()).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn what_a_template_refuses_is_said() {
    let messages = json!([{"role": "tool", "content": "x"}]);
    let refused = render("{{ raise_exception('roles must alternate') }}", messages.clone()).unwrap_err();
    assert!(refused.contains("roles must alternate"), "{refused}");
    for template in ["{{ strftime_now('%!') }}", "{{ messages[0].content + 1 }}", "{{ messages.nothing() }}"]
    {
        assert!(render(template, messages.clone()).is_err(), "{template}");
    }
}

#[test]
fn none_or_a_broken_one_is_said() {
    let messages = json!([{"role": "user", "content": "x"}]);
    assert!(render("{% for %}", messages.clone()).unwrap_err().contains("cannot be used"));
    let none = Chat::new(TokenizerInfo::default()).render(&conversation(messages, json!({}))).unwrap_err();
    assert!(none.body()["error"]["message"].as_str().unwrap().contains("no chat template"));
}

#[test]
fn a_request_adds_variables_and_replaces_none() {
    let chat = chat("{{ thinking }} {{ bos_token }}");
    let messages = json!([{"role": "user"}]);
    let rendered = chat.render(&conversation(messages, json!({"thinking": true, "bos_token": "no"})));
    assert_eq!(rendered.unwrap(), "true <s>");
}
