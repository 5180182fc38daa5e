%% Modules of EMQX that do as much as a test of a host needs: no broker, but what it is asked.
-module(nats_gateway_fake_emqx).

-export([load/0, unload/0]).
-export([load/2, unload/1]).
-export([message/2, deliver/2]).
-export([page_defaults/0]).

%% Each function of a module, as Erlang source.
-define(MODULES, #{
    emqx => [
        "get_config(Path, Default) -> case get({config, Path}) of undefined -> Default; Value -> Value end."
    ],
    emqx_config => ["get_zone_conf(_, _, Default) -> Default."],
    emqx_banned => ["check(_) -> false."],
    emqx_broker => [
        "safe_publish(#{topic := Topic}) ->"
        " get(tells) =:= true andalso (self() ! {asked, {publish, Topic}}), [{here, topic, {ok, 1}}].",
        "subscribe(Topic, _, _) -> self() ! {asked, {subscribe, Topic}}, ok.",
        "unsubscribe(Topic) -> self() ! {asked, {unsubscribe, Topic}}, ok.",
        "subscriber_down(_) -> ok."
    ],
    emqx_broker_helper => ["lookup_subid(_) -> undefined."],
    emqx_flapping => ["detect(_) -> false."],
    emqx_gateway_cm => [
        "register_channel(_, _, _, _) -> ok.",
        "insert_channel_info(_, _, _, _) -> ok.",
        "unregister_channel(_, _) -> ok."
    ],
    emqx_gateway_ctx => [
        "authenticate(_, Client) -> {ok, Client}.",
        "authorize(_, _, _, Topic) ->"
        " timer:sleep(case get(authorization_ms) of undefined -> 0; Ms -> Ms end),"
        " case get({denied, Topic}) of true -> deny; _ -> allow end.",
        "connection_expire_interval(_, _) -> undefined."
    ],
    emqx_gateway_metrics => ["tabname(_) -> no_such_table."],
    emqx_hooks => [
        "lookup(_) -> [].",
        "run(Name, Arguments) ->"
        " get(tells) =:= true andalso (self() ! {asked, {hook, Name, Arguments}}), ok.",
        "run_fold(_, _, Acc) -> Acc."
    ],
    emqx_logger => ["set_metadata_clientid(_) -> ok.", "set_metadata_peername(_) -> ok."],
    emqx_message => [
        "topic(#{topic := Topic}) -> Topic.",
        "payload(#{payload := Payload}) -> Payload.",
        "get_headers(#{headers := Headers}) -> Headers.",
        "from(#{from := From}) -> From.",
        "id(#{payload := Payload}) -> Payload.",
        "make(From, _, Topic, Payload, _, Headers) ->"
        " #{from => From, topic => Topic, payload => Payload, headers => Headers}."
    ],
    emqx_metrics => ["inc(_, _) -> ok."],
    emqx_shared_sub => [
        "dispatch(Group, Filter, {delivery, _, #{payload := P}}, _) ->"
        " self() ! {asked, {dispatch, Group, Filter, P}}."
    ],
    emqx_topic => [
        "get_shared_real_topic({share, _, Topic}) -> Topic; get_shared_real_topic(Topic) -> Topic.",
        "match(Name, Filter) -> Name =:= Filter.",
        "make_shared_record(Group, Topic) -> {share, Group, Topic}.",
        "validate(filter, <<\"bad\">>) -> error(bad); validate(filter, _) -> true.",
        "parse(Topic) -> {Topic, #{}}."
    ]
}).

-spec load() -> ok.
load() ->
    maps:foreach(fun load/2, ?MODULES),
    nats_gateway_emqx_compat:init().

%% A module of a test's own.
-spec load(module(), [string()]) -> {module, module()}.
load(Module, Sources) ->
    Functions = [form(Source) || Source <- Sources],
    Exports = [{Name, Arity} || {function, _, Name, Arity, _} <- Functions],
    Forms = [{attribute, 1, module, Module}, {attribute, 1, export, Exports} | Functions],
    {ok, Module, Binary} = compile:forms(Forms),
    {module, Module} = code:load_binary(Module, "fake", Binary).

form(Source) ->
    {ok, Tokens, _} = erl_scan:string(Source),
    {ok, Form} = erl_parse:parse_form(Tokens),
    Form.

-spec unload() -> ok.
unload() ->
    ok = nats_gateway_emqx_compat:forget(),
    unload(maps:keys(?MODULES)).

-spec unload([module()]) -> ok.
unload(Modules) ->
    lists:foreach(fun(Module) -> code:delete(Module) andalso code:purge(Module) end, Modules).

message(Topic, Payload) ->
    #{topic => Topic, payload => Payload, headers => #{}, from => <<"somebody">>}.

%% What EMQX's broker sends a subscriber, here to the caller.
-spec deliver(nats_gateway_host:key(), Payload :: binary()) -> term().
deliver({undefined, Filter}, Payload) ->
    self() ! {deliver, Filter, message(Filter, Payload)};
deliver({Group, Filter}, Payload) ->
    Message = message(Filter, Payload),
    self() ! {deliver, Filter, Message#{headers := #{redispatch_to => {Group, Filter}}}}.

%% The stored settings of a fresh plugin: each line is a key and its value in JSON.
-spec page_defaults() -> #{Key :: binary() => term()}.
page_defaults() ->
    Ebin = filename:dirname(code:which(nats_gateway_emqx_page)),
    {ok, Hocon} = file:read_file(filename:join([filename:dirname(Ebin), "priv", "config.hocon"])),
    maps:from_list([
        begin
            [Key, Json] = binary:split(Line, <<" = ">>),
            {Key, json(Json)}
        end
     || Line <- binary:split(Hocon, <<"\n">>, [global, trim])
    ]).

json(<<"[]">>) -> [];
json(<<"true">>) -> true;
json(<<"false">>) -> false;
json(<<"\"", Text/binary>>) -> binary:part(Text, 0, byte_size(Text) - 1);
json(Number) -> binary_to_integer(Number).
