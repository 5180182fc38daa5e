%% Presence: a message when a client has logged in, and another one when it is gone. This module has
%% the settings, and makes the messages of one client. The hosts publish them.
-module(nats_gateway_presence).

-export([file_schema/0]).
-export([of_file/1]).
-export([page_schema/0]).
-export([of_page/1]).
-export([messages/3]).
-export([log_once/3]).

-export_type([settings/0, messages/0]).

-include_lib("kernel/include/logger.hrl").

-import(nats_gateway_schema, [invalid/2]).

-type settings() ::
    off
    | #{
        topic := binary(),
        connected := binary(),
        disconnected := binary(),
        qos := 0 | 1,
        retain := boolean(),
        %% how the names of these settings begin, and a number that other settings do not have
        prefix := binary(),
        id := non_neg_integer()
    }.

%% Of one client. The topic has its mountpoint.
-type messages() :: #{
    topic := binary(),
    connected := binary(),
    disconnected := binary(),
    qos := 0 | 1,
    retain := boolean(),
    prefix := binary(),
    id := non_neg_integer()
}.

-type problem() :: empty_value | wildcard | separator | not_text | too_long | too_many_levels | dollar.

%% What a template may hold.
-define(PLACEHOLDERS, [
    <<"account">>,
    <<"clientid">>,
    <<"connected_at">>,
    <<"listener">>,
    <<"name">>,
    <<"peerhost">>,
    <<"server_name">>,
    <<"username">>
]).

-define(MAX_TOPIC_TEMPLATE, 1024).
-define(MAX_PAYLOAD_TEMPLATE, 4096).
%% An MQTT string, and the payload of an MQTT will, have no more bytes.
-define(MAX_MQTT, 65535).

%% -------------------------------------------------------------------------------------------
%% Settings

%% These defaults are defined only here.
schema() ->
    #{
        topic => {fun topic/2, off},
        connected => {fun payload/2, <<"online">>},
        disconnected => {fun payload/2, <<"offline">>},
        qos => {{integer, 0, 1}, 1},
        retain => {boolean, true}
    }.

-spec file_schema() -> nats_gateway_schema:schema().
file_schema() -> schema().

-spec of_file(Table :: map()) -> settings().
of_file(Table) -> settings(Table, <<"presence.">>).

%% The page has no tables.
-spec page_schema() -> nats_gateway_schema:schema().
page_schema() -> maps:from_list([{page_key(Key), Setting} || {Key, Setting} <- maps:to_list(schema())]).

-spec of_page(Settings :: map()) -> settings().
of_page(Settings) ->
    Table = maps:map(fun(Key, _) -> maps:get(page_key(Key), Settings) end, schema()),
    settings(Table, <<"presence_">>).

page_key(topic) -> presence_topic;
page_key(connected) -> presence_connected;
page_key(disconnected) -> presence_disconnected;
page_key(qos) -> presence_qos;
page_key(retain) -> presence_retain.

settings(#{topic := off}, _) -> off;
settings(Table, Prefix) -> Table#{prefix => Prefix, id => erlang:phash2(Table)}.

topic(<<>>, _) ->
    off;
topic(Value, Path) ->
    Template = template(Value, ?MAX_TOPIC_TEMPLATE, Path),
    %% Any value stands for the placeholders here.
    case topic_problem(nats_gateway_template:render(Template, fun(_) -> <<"x">> end)) of
        none -> Template;
        wildcard -> invalid(Path, <<"must not have a wildcard, + or #">>);
        dollar -> invalid(Path, <<"must not begin with $">>);
        _ -> invalid(Path, <<"must be the name of a topic">>)
    end.

payload(Value, Path) -> template(Value, ?MAX_PAYLOAD_TEMPLATE, Path).

template(Value, Max, Path) ->
    _ =
        (is_binary(Value) andalso byte_size(Value) =< Max) orelse
            invalid(Path, [<<"must be a string of at most ">>, integer_to_binary(Max), <<" bytes">>]),
    {match, Begun} = run_all(<<"\\$\\{|\\z">>, Value),
    Names =
        case run_all(<<"\\$\\{([^}]*)\\}">>, Value) of
            {match, Found} -> [Name || [_, Name] <- Found];
            nomatch -> []
        end,
    Unknown = [Name || Name <- Names, not lists:member(Name, ?PLACEHOLDERS)],
    case length([Open || [Open] <- Begun, Open =/= <<>>]) =:= length(Names) andalso Unknown of
        [] -> Value;
        _ -> invalid(Path, [<<"has a placeholder that is unknown; known here: ">>, known()])
    end.

run_all(Pattern, Value) -> re:run(Value, Pattern, [global, {capture, all, binary}]).

known() -> lists:join(<<", ">>, [[<<"${">>, Name, <<"}">>] || Name <- ?PLACEHOLDERS]).

%% -------------------------------------------------------------------------------------------
%% The messages of one client

%% `none' where the settings have no presence, or where the topic cannot be made for this client:
%% then the log says so, once.
-spec messages(Client :: map(), Session :: map(), MaxLevels :: pos_integer() | infinity) ->
    none | messages().
messages(Client = #{config := #{presence := Settings = #{topic := Template}}}, Session, MaxLevels) ->
    Values = values(Client, Session),
    #{mountpoint := Mountpoint} = Session,
    try
        Topic = nats_gateway_template:render(Template, fun(Name) -> level(Name, Values) end),
        ok = check(topic, topic_problem(Topic)),
        Mounted = <<Mountpoint/binary, Topic/binary>>,
        ok = check(topic, length_problem(Mounted)),
        ok = check(topic, levels_problem(Mounted, MaxLevels)),
        Settings#{
            topic := Mounted,
            connected := message(connected, Settings, Values),
            disconnected := message(disconnected, Settings, Values)
        }
    catch
        throw:{unfit, Setting, Facts} ->
            ok = log_once(Setting, Facts, Settings),
            none
    end;
messages(_, _, _) ->
    none.

values(Client = #{connect := Fields, config := Config}, Session) ->
    #{listener := Listener, peername := {PeerHost, _}} = Client,
    #{
        <<"account">> => maps:get(account, maps:get(login, Client, #{}), <<"$G">>),
        <<"clientid">> => maps:get(clientid, Session),
        <<"connected_at">> => integer_to_binary(erlang:system_time(millisecond)),
        <<"listener">> => text(Listener),
        <<"name">> => maps:get(name, Fields, <<>>),
        <<"peerhost">> => list_to_binary(inet:ntoa(PeerHost)),
        <<"server_name">> => maps:get(server_name, Config),
        <<"username">> => text(maps:get(username, Session, undefined))
    }.

text(undefined) -> <<>>;
text(Atom) when is_atom(Atom) -> atom_to_binary(Atom);
text(Text) -> Text.

%% A value in a topic stays within the level where the template has it. Clients choose most of the
%% values, and must not choose the topic.
level(Name, Values) ->
    #{Name := Value} = Values,
    Problem =
        case binary:match(Value, [<<"/">>]) of
            _ when Value =:= <<>> -> empty_value;
            nomatch -> topic_problem(<<"x", Value/binary>>);
            _ -> separator
        end,
    ok = check(topic, Problem, #{placeholder => Name}),
    Value.

message(Setting, Settings, Values) ->
    Template = maps:get(Setting, Settings),
    Escape =
        case is_json(Template) of
            true -> fun escaped/1;
            false -> fun(Value) -> Value end
        end,
    Payload = nats_gateway_template:render(Template, fun(Name) -> Escape(maps:get(Name, Values)) end),
    ok = check(Setting, length_problem(Payload)),
    Payload.

%% What begins like JSON is JSON: a quote in a name must not end a string of it.
is_json(Template) ->
    case string:trim(Template, leading) of
        <<C, _/binary>> when C =:= ${; C =:= $[ -> true;
        _ -> false
    end.

escaped(Value) ->
    Text =
        case unicode:characters_to_binary(Value) of
            Utf8 when is_binary(Utf8) -> Utf8;
            _ -> <<>>
        end,
    Json = nats_gateway_nif:json(#{v => Text}),
    %% {"v":"..."}
    binary:part(Json, 6, byte_size(Json) - 8).

check(Setting, Problem) -> check(Setting, Problem, #{}).

check(_, none, _) -> ok;
check(Setting, Problem, Facts) -> throw({unfit, Setting, Facts#{reason => Problem}}).

-spec topic_problem(binary()) -> none | problem().
topic_problem(<<>>) ->
    empty_value;
topic_problem(<<"$", _/binary>>) ->
    dollar;
topic_problem(Topic) ->
    case binary:match(Topic, [<<"+">>, <<"#">>]) of
        nomatch -> text_problem(unicode:characters_to_list(Topic));
        _ -> wildcard
    end.

%% Brokers close the connection because of some characters.
text_problem(Characters) when is_list(Characters) ->
    case lists:any(fun is_disallowed/1, Characters) of
        true -> not_text;
        false -> none
    end;
text_problem(_) ->
    not_text.

is_disallowed(C) ->
    C < 16#20 orelse (C >= 16#7F andalso C =< 16#9F) orelse (C >= 16#FDD0 andalso C =< 16#FDEF) orelse
        C band 16#FFFE =:= 16#FFFE.

length_problem(Text) when byte_size(Text) > ?MAX_MQTT -> too_long;
length_problem(_) -> none.

levels_problem(Topic, MaxLevels) ->
    case length(binary:matches(Topic, <<"/">>)) >= MaxLevels of
        true -> too_many_levels;
        false -> none
    end.

%% Any number of clients may have the same problem. It is logged again for other settings.
-spec log_once(Setting :: atom(), Facts :: map(), settings() | messages()) -> ok.
log_once(Setting, Facts, #{prefix := Prefix, id := Id}) ->
    Key = {?MODULE, Id, Setting, maps:with([reason, placeholder], Facts)},
    case persistent_term:get(Key, false) of
        true ->
            ok;
        false ->
            ok = persistent_term:put(Key, true),
            ?LOG_WARNING(Facts#{
                msg => presence_not_published,
                setting => <<Prefix/binary, (atom_to_binary(Setting))/binary>>,
                hint => <<"it is logged once">>
            }),
            ok
    end.
