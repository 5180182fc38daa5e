%% The log of the standalone gateway: where it goes, and what a line of it looks like.
%%
%% What clients and brokers have chosen is in lines, too: it must neither begin a line of its own nor
%% make JSON that nobody can read.
-module(nats_gateway_log).

-export([start/1]).
-export([change/2]).
-export([opened_again/0]).
-export([prefer/1]).
-export([say/3]).
-export([fail/2]).
-export([format/2]).
-export([format_report/1]).

-include_lib("kernel/include/logger.hrl").

-export_type([settings/0]).

-type settings() :: #{
    log_level := logger:level() | none,
    log_format := text | json,
    %% standard error, if it is not a file
    log_file := undefined | binary(),
    atom() => term()
}.

-define(STDERR, default).
-define(FILES, [nats_gateway_log_file, nats_gateway_log_other_file]).

%% -------------------------------------------------------------------------------------------
%% Where it goes

-spec start(settings()) -> ok | {error, Text :: iodata()}.
start(Settings) ->
    _ = logger:remove_handler(?STDERR),
    open(Settings).

%% At a reload. If the new file cannot be opened, everything stays as it is.
-spec change(Old :: settings(), New :: settings()) -> ok | {error, Text :: iodata()}.
change(Old, New) ->
    Sink = maps:with([log_format, log_file], New),
    case maps:with([log_format, log_file], Old) of
        Sink -> set_level(New);
        _ -> move(New)
    end.

move(Settings) ->
    Before = handlers(),
    case open(Settings) of
        ok -> lists:foreach(fun(Id) -> ok = logger:remove_handler(Id) end, Before -- [?STDERR || is_stderr(Settings)]);
        Error -> Error
    end.

is_stderr(#{log_file := File}) -> File =:= undefined.

handlers() -> [Id || Id <- logger:get_handler_ids(), lists:member(Id, [?STDERR | ?FILES])].

open(Settings = #{log_file := undefined}) ->
    Formatter = formatter(Settings, nats_gateway_service_manager:is_journal()),
    case lists:member(?STDERR, handlers()) of
        true -> ok = logger:update_handler_config(?STDERR, formatter, Formatter);
        false -> ok = logger:add_handler(?STDERR, logger_std_h, handler(#{type => standard_error}, Formatter))
    end,
    set_level(Settings);
open(Settings = #{log_file := File}) ->
    %% The handler of OTP would make missing directories, and does not say which setting it is.
    case file:open(File, [append, raw]) of
        {ok, Device} ->
            ok = file:close(Device),
            [Id | _] = ?FILES -- handlers(),
            %% Before each line the handler looks whether the file was moved, and opens a new one.
            Config = #{
                type => file,
                file => unicode:characters_to_list(File),
                modes => [raw, append],
                file_check => 0,
                filesync_repeat_interval => no_repeat
            },
            ok = logger:add_handler(Id, logger_std_h, handler(Config, formatter(Settings, false))),
            set_level(Settings);
        {error, Reason} ->
            {error, ["log_file: ", File, ": ", file:format_error(Reason)]}
    end.

handler(Config, Formatter) ->
    #{
        config => Config,
        formatter => Formatter,
        filters => [{progress, {fun logger_filters:progress/2, stop}}]
    }.

set_level(Settings = #{log_level := Level}) ->
    ok = prefer(Settings),
    logger:set_primary_config(level, Level).

%% For SIGUSR1, after which a nats-server opens its file again. Here the next line does it: this one.
-spec opened_again() -> ok.
opened_again() ->
    case [Id || Id <- ?FILES, lists:member(Id, handlers())] of
        [] -> ok;
        _ -> ?LOG_NOTICE(#{msg => log_file_opened_again})
    end.

%% -------------------------------------------------------------------------------------------
%% The start

%% What is said at the start has this form, too.
-spec prefer(settings()) -> ok.
prefer(#{log_format := Format}) -> persistent_term:put(?MODULE, Format).

%% What the start says is for people, unless the log is for programs.
-spec say(Msg :: atom(), logger:report(), Text :: iodata()) -> ok.
say(Msg, Report, Text) ->
    case persistent_term:get(?MODULE, text) of
        json -> ?LOG_NOTICE(Report#{msg => Msg});
        text -> io:format("nats_gateway: ~ts~n", [Text])
    end.

%% Why it does not start, on standard error.
-spec fail(Status :: pos_integer(), Text :: iodata()) -> ok.
fail(Status, Text) ->
    Journal = nats_gateway_service_manager:is_journal(),
    Line =
        case persistent_term:get(?MODULE, text) =:= json andalso nats_gateway_nif:load() =:= ok of
            true ->
                Report = #{msg => start_failed, reason => to_binary(Text), exit_status => Status},
                Event = #{
                    level => error, msg => {report, Report}, meta => #{time => logger:timestamp()}
                },
                json(Event, Journal);
            false ->
                [priority(error, Journal), "nats_gateway: ", Text, $\n]
        end,
    io:put_chars(standard_error, Line).

%% -------------------------------------------------------------------------------------------
%% What a line looks like

formatter(#{log_format := Format}, Journal) -> {?MODULE, #{format => Format, journal => Journal}}.

%% The callback of OTP's logger.
-spec format(logger:log_event(), #{format := text | json, journal := boolean()}) ->
    unicode:chardata().
format(Event, #{format := json, journal := Journal}) ->
    json(Event, Journal);
format(Event = #{level := Level}, #{format := text, journal := Journal}) ->
    Template =
        case Journal of
            %% The journal has the time of each line.
            true -> [priority(Level, true), level, " ", msg, "\n"];
            false -> [time, " ", level, " ", msg, "\n"]
        end,
    logger_formatter:format(Event, #{
        single_line => true, report_cb => fun ?MODULE:format_report/1, template => Template
    }).

priority(Level, true) -> nats_gateway_service_manager:priority(Level);
priority(_, false) -> "".

%% First comes what happened, then what is known of it.
-spec format_report(logger:report()) -> {io:format(), [term()]}.
format_report(Report = #{msg := Msg}) ->
    Known = lists:sort(maps:to_list(maps:remove(msg, Report))),
    {lists:flatten(["~ts" | [" ~ts=~ts" || _ <- Known]]), [
        without_controls(text(Msg)) | lists:append([[Key, without_controls(text(Value))] || {Key, Value} <- Known])
    ]};
format_report(Report) ->
    logger:format_report(Report).

%% The time, the level and the word come first.
json(Event = #{level := Level, meta := #{time := Time}}, Journal) ->
    {Msg, Known} = message(Event),
    First = [
        {time, calendar:system_time_to_rfc3339(Time, [{unit, microsecond}, {offset, "Z"}])},
        {level, atom_to_binary(Level)},
        {msg, Msg}
    ],
    Members = [
        [nats_gateway_nif:json(to_binary(text(Key))), $:, nats_gateway_nif:json(json_value(Value))]
     || {Key, Value} <- First ++ lists:sort(maps:to_list(maps:without([time, level, msg], Known)))
    ],
    [priority(Level, Journal), ${, lists:join($,, Members), "}\n"].

message(#{msg := {report, Report = #{msg := Msg}}}) ->
    {to_binary(text(Msg)), Report};
message(Event) ->
    Text = logger_formatter:format(Event, #{single_line => true, template => [msg]}),
    {to_binary(Text), #{}}.

json_value(Value) when is_integer(Value), Value >= -(1 bsl 63), Value < 1 bsl 64 -> Value;
json_value(Value) when is_boolean(Value) -> Value;
json_value(Value) when is_list(Value) ->
    case Value =:= [] orelse not io_lib:printable_unicode_list(Value) of
        true when length(Value) =< 1000 -> [json_value(Element) || Element <- Value];
        _ -> to_binary(Value)
    end;
json_value(Value) ->
    text(Value).

%% UTF-8, in both forms.
text(Value) when is_binary(Value) -> to_binary(Value);
text(Value) when is_atom(Value) -> atom_to_binary(Value);
text(Value = {Host, Port}) when is_integer(Port), Port >= 0, Port =< 65535 ->
    case is_list(Host) andalso io_lib:printable_unicode_list(Host) orelse inet:is_ip_address(Host) of
        true -> to_binary(nats_gateway_address:format(Value));
        false -> any_text(Value)
    end;
text(Value) ->
    any_text(Value).

any_text(Value) -> to_binary(io_lib:format("~0tp", [Value])).

%% What is not UTF-8 is shown as the bytes that it is.
to_binary(Data) ->
    try unicode:characters_to_binary(Data) of
        Text when is_binary(Text) -> Text;
        {_, Valid, <<Byte, Rest/binary>>} -> iolist_to_binary([Valid, escaped(Byte), to_binary(Rest)]);
        {_, _, _} -> any_text(Data)
    catch
        error:badarg -> any_text(Data)
    end.

without_controls(Text) ->
    case re:run(Text, "[\\x{00}-\\x{1f}\\x{7f}-\\x{9f}\\x{2028}\\x{2029}]", [unicode, {capture, none}]) of
        nomatch -> Text;
        match -> <<<<(shown_character(C))/binary>> || <<C/utf8>> <= Text>>
    end.

shown_character(C) when C < 16#20; C >= 16#7F, C =< 16#9F -> escaped(C);
shown_character(C) when C =:= 16#2028; C =:= 16#2029 -> <<" ">>;
shown_character(C) -> <<C/utf8>>.

escaped(Byte) -> iolist_to_binary(io_lib:format("\\x~2.16.0b", [Byte])).
