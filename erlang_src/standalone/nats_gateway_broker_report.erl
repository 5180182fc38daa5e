%% What `nats_gateway check' has found, for people and as JSON: what the broker grants, what it does
%% otherwise than MQTT 5 says, and what clients will therefore have.
-module(nats_gateway_broker_report).

-export([print/3]).
-export([print_error/2]).
-export([sentences/2]).

-export_type([findings/0]).

-type findings() :: #{
    granted := nats_gateway_mqtt_nif:properties(),
    probe := off | hung_up | inconclusive | [nats_gateway_probe:quirk()],
    %% only if they were tried
    no_local => boolean(),
    tells_no_subscribers => boolean()
}.

%% What MQTT 5 says where CONNACK says nothing.
-define(DEFAULTS, [
    {maximum_qos, "Maximum QoS", 2},
    {retain_available, "Retain Available", true},
    {wildcard_subscription_available, "Wildcard Subscription Available", true},
    {shared_subscription_available, "Shared Subscription Available", true},
    {subscription_identifier_available, "Subscription Identifiers Available", true},
    {maximum_packet_size, "Maximum Packet Size", null},
    {receive_maximum, "Receive Maximum", 65535},
    {topic_alias_maximum, "Topic Alias Maximum", 0},
    {server_keep_alive, "Server Keep Alive", null}
]).

%% So many requests of one client wait for the broker at a time at most (nats_gateway_mqtt_client).
-define(MAX_REQUESTS, 4096).

-spec print(findings(), nats_gateway_config:config(), IsJson :: boolean()) -> ok.
print(Findings, Config, true) ->
    json(report(Findings, Config));
print(Findings = #{granted := Granted}, Config = #{upstream := Upstream}, false) ->
    write([
        ["broker ", nats_gateway_reach:url(Upstream), ": it is there and has accepted the login\n"],
        "\nWhat it grants\n",
        [
            io_lib:format("  ~-36s~ts~n", [Label, granted(Key, maps:get(Key, Granted, Default))])
         || {Key, Label, Default} <- ?DEFAULTS
        ],
        "\nWhat the probe finds\n",
        [["  ", Sentence, $\n] || Sentence <- probe_sentences(Findings)],
        "\nWhat clients have\n",
        [["  ", Sentence, $\n] || Sentence <- sentences(Findings, Config)]
    ]).

granted(_, true) -> "yes";
granted(_, false) -> "no";
granted(maximum_packet_size, null) -> "no limit";
granted(server_keep_alive, null) -> "as the client says (upstream.keepalive)";
granted(maximum_packet_size, Bytes) -> [integer_to_list(Bytes), " bytes"];
granted(server_keep_alive, Seconds) -> [integer_to_list(Seconds), " s"];
granted(_, Number) -> integer_to_list(Number).

-spec print_error(Text :: iodata(), Status :: pos_integer()) -> ok.
print_error(Text, Status) ->
    json(#{ok => false, error => unicode:characters_to_binary(Text), exit_status => Status}).

json(Term) ->
    ok = nats_gateway_nif:load(),
    write([nats_gateway_nif:json(Term), $\n]).

write(Text) ->
    _ = io:setopts(standard_io, [{encoding, unicode}]),
    io:put_chars(Text).

report(Findings = #{granted := Granted, probe := Probe}, Config = #{upstream := Upstream}) ->
    {Outcome, Quirks} =
        case Probe of
            _ when is_list(Probe) -> {conclusive, Probe};
            _ -> {Probe, []}
        end,
    #{
        ok => true,
        broker => nats_gateway_reach:url(Upstream),
        granted => maps:from_list([
            {Key, maps:get(Key, Granted, Default)}
         || {Key, _, Default} <- ?DEFAULTS
        ]),
        probe => maps:merge(
            #{outcome => Outcome, quirks => Quirks}, maps:with([no_local, tells_no_subscribers], Findings)
        ),
        clients => #{
            max_payload => max_payload(Granted, Config),
            queue_groups => maps:get(shared_subscription_available, Granted, true),
            wildcards => maps:get(wildcard_subscription_available, Granted, true),
            no_responders => no_responders(Findings),
            echo_false => maps:get(no_local, Findings, null)
        },
        sentences => [unicode:characters_to_binary(S) || S <- probe_sentences(Findings) ++ sentences(Findings, Config)]
    }.

probe_sentences(#{probe := off}) ->
    ["It was not tried: upstream.probe is false."];
probe_sentences(#{probe := hung_up}) ->
    ["The broker ended the connection of the probe."];
probe_sentences(#{probe := inconclusive}) ->
    ["The broker denied the probe its message below nats_gateway/probe/, so nothing is known."];
probe_sentences(Findings = #{probe := Quirks}) ->
    Sentences = [quirk(Quirk) || Quirk <- Quirks] ++
        [
            "no_local: a client gets its own messages, although it has subscribed with No Local."
         || #{no_local := false} <- [Findings]
        ],
    case Sentences of
        [] -> ["It does what MQTT 5 says."];
        _ -> Sentences
    end.

quirk(Quirk) -> [atom_to_list(Quirk), ": ", explain(Quirk)].

explain(puback_lies) -> "PUBACK says that there are no subscribers although there is one.";
explain(no_identifiers) -> "messages have no Subscription Identifiers.";
explain(no_shared_identifiers) -> "messages for a shared subscription have no Subscription Identifier.";
explain(merges) -> "one message comes for several subscriptions that match.";
explain(pong_overtakes) -> "PINGRESP comes before messages that were published before it.".

%% What clients have.
-spec sentences(findings(), nats_gateway_config:config()) -> [iodata()].
sentences(Findings = #{granted := Granted}, Config) ->
    All = [
        payload(Granted, Config),
        queue_groups(Granted),
        wildcards(Granted),
        requests(no_responders(Findings)),
        verbose(Granted),
        echo(Findings),
        retained(Granted, Config),
        publish_properties(Granted, Config),
        depth(Config),
        under_way(Granted)
    ],
    [Sentence || Sentence <- All, Sentence =/= none].

payload(Granted, Config = #{max_payload_size := OfSettings}) ->
    case max_payload(Granted, Config) of
        OfSettings ->
            io_lib:format("INFO has max_payload ~b, as max_payload_size says.", [OfSettings]);
        Less ->
            io_lib:format(
                "INFO has max_payload ~b, not the ~b of max_payload_size: the broker takes packets of ~b bytes.",
                [Less, OfSettings, maps:get(maximum_packet_size, Granted)]
            )
    end.

max_payload(Granted, #{max_payload_size := OfSettings, max_control_line := MaxControlLine}) ->
    case nats_gateway_host_mqtt:max_payload(Granted, MaxControlLine) of
        #{max_payload := OfBroker} -> min(OfBroker, OfSettings);
        #{} -> OfSettings
    end.

queue_groups(#{shared_subscription_available := false}) ->
    "Queue groups are not available: a SUB with one is a permission violation.";
queue_groups(_) ->
    "Queue groups are available.".

wildcards(#{wildcard_subscription_available := false}) ->
    "Wildcards are not available: a SUB on a subject with * or > is a permission violation.";
wildcards(_) ->
    "Wildcards are available.".

%% As far as it is known.
no_responders(#{granted := #{maximum_qos := 0}}) ->
    false;
no_responders(#{probe := Quirks, tells_no_subscribers := Tells}) when is_list(Quirks) ->
    Tells andalso not lists:member(puback_lies, Quirks);
no_responders(#{tells_no_subscribers := Tells}) ->
    Tells;
no_responders(#{}) ->
    null.

requests(true) ->
    "A request that nobody listens to is answered with 503 at once.";
requests(false) ->
    "A request that nobody listens to is not answered with 503: it times out.";
requests(null) ->
    "Whether a request that nobody listens to is answered with 503 is not known.".

verbose(#{maximum_qos := 0}) ->
    "The broker takes QoS 0 only: +OK of a verbose client does not mean that the broker has the message.";
verbose(_) ->
    "+OK of a verbose client means that the broker has taken the message.".

echo(#{no_local := true}) -> "A client with echo:false does not get its own messages.";
echo(#{no_local := false}) -> "A client with echo:false gets its own messages all the same.";
echo(#{}) -> "Whether echo:false works is not known.".

retained(#{retain_available := false}, #{retained_on_subscribe := true}) ->
    "retained_on_subscribe brings nothing: the broker has no retained messages.";
retained(_, #{retained_on_subscribe := true}) ->
    "A SUB brings the retained message of a topic, as retained_on_subscribe says.";
retained(_, _) ->
    none.

publish_properties(Granted, #{publish_properties := true}) ->
    Refused =
        [<<"Mqtt-Retain: true">> || #{retain_available := false} <- [Granted]] ++
            [
                [<<"Mqtt-Qos: ">>, integer_to_binary(QoS)]
             || #{maximum_qos := Max} <- [Granted], QoS <- lists:seq(Max + 1, 2)
            ],
    case Refused of
        [] -> "Headers set all properties of a PUBLISH, as publish_properties says.";
        _ -> ["The broker does not take these headers of publish_properties: ", lists:join(", ", Refused), "."]
    end;
publish_properties(_, _) ->
    none.

depth(#{upstream := #{max_topic_levels := infinity}}) ->
    "Subjects may have any number of tokens, as upstream.max_topic_levels says.";
depth(#{upstream := #{max_topic_levels := Max}}) ->
    io_lib:format(
        "Subjects have at most ~b tokens, as upstream.max_topic_levels says; "
        "the broker does not say how many it takes.",
        [Max]
    ).

under_way(Granted) ->
    Most = min(?MAX_REQUESTS, maps:get(receive_maximum, Granted, 65535)),
    io_lib:format(
        "At most ~b messages of one client wait for the broker's PUBACK at a time; "
        "more of them wait in the gateway.",
        [Most]
    ).
